package display

// What the tests look at from inside.
var (
	Text  = text
	Heard = heard
)
