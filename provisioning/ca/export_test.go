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
