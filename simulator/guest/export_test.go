package guest

// Sources makes a list of sources from what this machine says.
var Sources = sources
