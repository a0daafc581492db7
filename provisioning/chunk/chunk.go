// Package chunk cuts content where the content itself says so, and names the
// pieces by their hash: the index of a release lets a box take from an older
// release what both have in common, and fetch the rest alone.
//
// The cuts come from a rolling Rabin fingerprint (github.com/restic/chunker)
// with a polynomial and sizes that are part of version 1 of the format: they
// never change, or no box would find its old pieces again. An index is about
// 0.2 % of what it describes. It promises nothing about who made it: its own
// hash is signed with the release. It does no files and no network.
package chunk

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/restic/chunker"
)

// Sizes of version 1. A piece is Min to Max bytes, the last one of a content
// may be shorter. averageBits makes a cut likely once in 16 KiB.
const (
	Min = 4 << 10
	Max = 64 << 10

	averageBits = 14
	polynomial  = chunker.Pol(0x3DA3358B4DC173) // irreducible, of degree 53
)

// Layout of version 1: the magic bytes, the length of the content (uint64), then
// for each piece its length less one (uint16) and its SHA-256. Big endian.
const (
	magic      = "TLWCHNK\x01"
	headerSize = len(magic) + 8
	entrySize  = 2 + sha256.Size
)

// maxLength is the largest content that can be described: 1 TiB.
const maxLength = 1 << 40

// ErrIndex is returned for bytes that are no index of this version.
var ErrIndex = errors.New("not a chunk index")

// Chunk is one piece of a content.
type Chunk struct {
	Offset int64
	Length int
	Sum    [sha256.Size]byte
}

// Is reports whether b is the content of the piece.
func (c Chunk) Is(b []byte) bool { return len(b) == c.Length && sha256.Sum256(b) == c.Sum }

// Split reads r to its end and hands over each piece in turn. The bytes are
// valid until f returns; an error of f ends the reading and is returned.
func Split(r io.Reader, f func(Chunk, []byte) error) error {
	c := chunker.NewWithBoundaries(r, polynomial, Min, Max)
	c.SetAverageBits(averageBits)
	buf := make([]byte, 0, Max)
	var at int64 // the chunker counts in uint, which is too short on small machines
	for {
		piece, err := c.Next(buf)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("cut content: %w", err)
		}
		n := len(piece.Data)
		if err := f(Chunk{Offset: at, Length: n, Sum: sha256.Sum256(piece.Data)}, piece.Data); err != nil {
			return err
		}
		at += int64(n)
	}
}

// Index reads r to its end and returns its index.
func Index(r io.Reader) ([]byte, error) {
	var b bytes.Buffer
	b.WriteString(magic)
	b.Write(make([]byte, 8))
	var length int64
	err := Split(r, func(c Chunk, _ []byte) error {
		length = c.Offset + int64(c.Length)
		if length > maxLength {
			return fmt.Errorf("content has more than %d bytes", int64(maxLength))
		}
		var n [2]byte
		binary.BigEndian.PutUint16(n[:], uint16(c.Length-1)) // #nosec G115 -- 1 to Max
		b.Write(n[:])
		b.Write(c.Sum[:])
		return nil
	})
	if err != nil {
		return nil, err
	}
	binary.BigEndian.PutUint64(b.Bytes()[len(magic):], uint64(length)) // #nosec G115 -- never negative
	return b.Bytes(), nil
}

// MaxIndex is the largest index that a content of length bytes can have: what
// is larger need not be fetched.
func MaxIndex(length int64) int64 {
	return int64(headerSize) + int64(entrySize)*(max(length, 0)/Min+1)
}

// Parse reads an index. The pieces it returns lie one behind the other from 0
// on, without gaps; the end of the last is the length of the content. Errors
// are ErrIndex.
func Parse(b []byte) ([]Chunk, error) {
	if len(b) < headerSize || string(b[:len(magic)]) != magic {
		return nil, fmt.Errorf("unknown format or version: %w", ErrIndex)
	}
	length := binary.BigEndian.Uint64(b[len(magic):])
	entries := b[headerSize:]
	if length > maxLength || len(entries)%entrySize != 0 {
		return nil, fmt.Errorf("%d bytes for a content of %d: %w", len(b), length, ErrIndex)
	}
	out := make([]Chunk, len(entries)/entrySize)
	var at int64
	for i := range out {
		e := entries[i*entrySize:]
		n := int(binary.BigEndian.Uint16(e)) + 1
		if n < Min && i < len(out)-1 {
			return nil, fmt.Errorf("piece %d has %d bytes: %w", i, n, ErrIndex)
		}
		out[i] = Chunk{Offset: at, Length: n, Sum: [sha256.Size]byte(e[2:entrySize])}
		at += int64(n)
	}
	if at != int64(length) { // #nosec G115 -- at most maxLength
		return nil, fmt.Errorf("pieces make %d bytes, the content has %d: %w", at, length, ErrIndex)
	}
	return out, nil
}
