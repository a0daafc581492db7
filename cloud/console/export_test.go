package console

// Serve is Handler over any files.
var Serve = handler
