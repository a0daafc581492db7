package ca

// CutBefore makes the power go before the nth change of the disk from now, as
// a panic with Cut; 0 never.
func CutBefore(n int) {
	i := 0
	step = func() {
		if i++; i == n {
			panic(Cut{})
		}
	}
}

// Cut is the panic of a power cut.
type Cut struct{}

// The two halves of an encrypted key file.
var (
	Encrypt = encrypt
	Decrypt = decrypt
)

var full = cost

// Tests are about what happens to keys, not about how long it takes to guess a
// passphrase: scrypt at full cost takes seconds under the race detector.
func init() { cost = scryptParams{N: 1 << 10, R: 8, P: 1} }

// FullCost makes encryption cost, until undo, what it does outside of tests.
func FullCost() (undo func()) {
	cheap := cost
	cost = full
	return func() { cost = cheap }
}
