package hal

import "errors"

// Errors of installing a bundle; the text says more.
var (
	ErrUntrusted    = errors.New("the bundle is not what was signed")
	ErrIncompatible = errors.New("the bundle is not made for this box")
	ErrTooOld       = errors.New("the bundle is older than this box may run")
	ErrNoStream     = errors.New("this box cannot install over a stream")
)

// Boot is what a box can start from, as its boot loader and installer tell it.
type Boot struct {
	Compatible string // what a bundle must be made for
	Version    string // what the running system says of itself; empty when it does not
	Booted     string // name of the slot that runs; empty when nobody knows
	Primary    string // name of the slot that is to be started next; empty when nobody knows
	Installing bool   // an installation is under way: the slots are not told
	Since      string // version of the installer at least, e.g. 1.13
	Before     string // version that it has not reached; empty: unknown
	Streams    bool   // a URL may be tried: it needs a kernel and an installer made for that
	Slots      []Slot
}

// Slot is a place for a part of a system; parts with the same root of their
// parents are installed together.
type Slot struct {
	Name        string // e.g. rootfs.1
	Class       string // e.g. rootfs
	Parent      string // name of the slot it belongs to; empty: none
	BootName    string // what the boot loader calls it; empty: it is not started
	Type        string // how it is written: raw, ext4...
	Device      string
	Good        Tri    // what the boot loader thinks
	Version     string // of the bundle in it
	Hash        string // hex, of the manifest of that bundle; empty when the installer does not keep it
	Transaction string // by which it came; empty when the installer does not keep it
	Installs    uint32 // how often it was written
	Activations uint32 // how often it was made the one to start next
	SHA256      string // hex, of the image that was written
	Size        int64  // of that image
}

// Slot returns the slot of that name.
func (b Boot) Slot(name string) (Slot, bool) {
	for _, s := range b.Slots {
		if s.Name == name {
			return s, name != ""
		}
	}
	return Slot{}, false
}

// Bundle is a system to install.
type Bundle struct {
	Source       string   // a file, or an http URL
	Headers      []string // of requests to that URL, "Name: value"
	Inspecting   []string // more of them, while it is only looked at: who serves has to give the same again when it is installed; none: nobody sees to that
	Format       string   // plain, verity, crypt
	ManifestHash string   // hex; empty: any
	Transaction  string   // kept with what is installed, where the installer can
}
