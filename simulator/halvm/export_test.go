package halvm

// Read is read.
var Read = read
