package audit

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strings"

	"github.com/tillward/tillward/provisioning/durable"
)

// mark is the file beside the spool: as far as the chain is known to have come,
// and the service's newest word for it. It is written at each anchor and each
// countersignature, and when so many entries came without one that their numbers
// could be used again after a loss. It is no proof: whoever can write it can
// write the spool, and the anchors and the service tell.
type mark struct {
	Device        string `json:"device,omitempty"` // whose chain it is, when that is known
	Seq           uint64 `json:"seq"`
	Hash          []byte `json:"hash,omitempty"`
	Boot          string `json:"boot,omitempty"`          // of the system, in which the last anchor was made
	Countersigned []byte `json:"countersigned,omitempty"` // the order as it came
	Signed        uint64 `json:"signed,omitempty"`        // entry that it is about
	At            int64  `json:"at,omitempty"`            // Unix milliseconds, by the service's clock
}

const maxMark = 64 << 10 // bytes that are read of the file

func (m mark) head() (h head) {
	h.seq = m.Seq
	copy(h.hash[:], m.Hash)
	return h
}

// load reads the mark; false when there is none that can be read.
func (m *mark) load(file string, log *slog.Logger) bool {
	if file == "" {
		return false
	}
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return false
	}
	if err == nil {
		*m, err = parseMark(b)
	}
	if err != nil {
		log.Error("the mark of the audit chain cannot be read and begins anew", slog.Any("err", err))
		return false
	}
	return true
}

// Whose is the device whose chain the mark in a file is about; empty when that is
// not known.
func Whose(file string) string {
	var m mark
	m.load(file, slog.New(slog.DiscardHandler))
	return m.Device
}

func parseMark(b []byte) (m mark, err error) {
	if len(b) > maxMark {
		return mark{}, fmt.Errorf("mark of %d bytes", len(b))
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return mark{}, fmt.Errorf("mark: %w", err)
	}
	if m.Seq == 0 || m.Seq > 1<<62 || len(m.Hash) != 32 || m.Signed > m.Seq {
		return mark{}, fmt.Errorf("mark of entry %d", m.Seq)
	}
	return m, nil
}

// save replaces the file; a power cut leaves the old one or the new one.
func (m mark) save(file string) error {
	if file == "" {
		return nil
	}
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return durable.Replace(file, b)
}

// systemBoot names the boot of the system that this is, e.g. by a UUID; empty
// when the kernel does not say.
func systemBoot() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
