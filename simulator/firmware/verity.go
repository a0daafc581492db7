package firmware

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"slices"
)

// verity is a root with the tree of hashes behind it, as the kernel's dm-verity
// reads it without a superblock [Linux, admin-guide/device-mapper/verity].
type verity struct {
	blocks     int64 // of data
	salt, root []byte
}

// hashes are those that a block holds.
const hashes = block / sha256.Size

// check reads all of it, the tree from its top down. Errors name the first block
// that is not what was hashed.
func (v verity) check(f io.ReaderAt, size int64) error {
	if v.blocks < 2 || v.blocks > size/block {
		return fmt.Errorf("%d bytes, and %d blocks of data are to be in it", size, v.blocks)
	}
	levels := []int64{v.blocks} // the blocks of each, data first
	for n := v.blocks; n > 1; {
		n = (n + hashes - 1) / hashes
		levels = append(levels, n)
	}
	var all int64
	for _, n := range levels {
		all += n
	}
	if size != all*block {
		return fmt.Errorf("%d bytes, and %d blocks of data have %d with their hashes", size, v.blocks, all*block)
	}
	at, want := v.blocks, v.root
	b, h := make([]byte, block), sha256.New()
	for i, n := range slices.Backward(levels) {
		what := "the hash tree"
		if i == 0 {
			at, what = 0, "the data"
		}
		var next []byte
		for n := range n {
			if _, err := f.ReadAt(b, (at+n)*block); err != nil {
				return err
			}
			h.Reset()
			h.Write(v.salt)
			h.Write(b)
			if got := h.Sum(nil); !bytes.Equal(got, want[n*sha256.Size:(n+1)*sha256.Size]) {
				return fmt.Errorf("block %d, in %s, has the hash %x, which is not that of the tree above it", at+n, what, got)
			}
			if i > 0 {
				next = append(next, b...)
			}
		}
		at, want = at+n, next
	}
	return nil
}
