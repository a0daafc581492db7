package uki

import (
	"bytes"
	"fmt"
	"slices"
)

// Split takes an image apart that Build has made: Build of the stub and the
// parts gives the same bytes again. The initrd comes as it lies in the image,
// with up to three zeros at its end. What another tool has made, or somebody has
// signed, is ErrImage.
func Split(image []byte) (stub []byte, p Parts, err error) {
	i, err := Parse(image)
	if err != nil {
		return nil, Parts{}, err
	}
	f, err := read(bytes.Clone(image))
	if err != nil {
		return nil, Parts{}, err
	}
	if f.signature > 0 {
		return nil, Parts{}, fmt.Errorf("it is signed: take it as it was before: %w", ErrImage)
	}
	p = Parts{
		Kernel: i.Section(".linux"), Initrd: i.Section(".initrd"), Cmdline: string(i.Section(".cmdline")),
		OSRelease: i.Section(".osrel"), Uname: string(i.Section(".uname")),
	}
	n := slices.IndexFunc(f.sections, func(s sectionHeader) bool { return s.Name == ".osrel" })
	if f.sections[n].Size == 0 {
		return nil, Parts{}, fmt.Errorf("its os-release is empty: it was built by another tool: %w", ErrImage)
	}
	f.cut(n)
	again, err := Build(f.raw, p)
	if err != nil {
		return nil, Parts{}, fmt.Errorf("put it together again: %w", err)
	}
	if !bytes.Equal(again, image) {
		return nil, Parts{}, fmt.Errorf("put together again it differs: it was built by another tool: %w", ErrImage)
	}
	return f.raw, p, nil
}

// cut takes away the sections from n on, and all that lies behind them: what add
// has done, undone.
func (f *file) cut(n int) {
	gap := max(uint64(f.get32(f.optional+atSectionGap)), page)
	var top uint64 // of what stays, in memory
	for _, s := range f.sections[:n] {
		top = max(top, uint64(s.VirtualAddress)+uint64(max(s.VirtualSize, s.Size)))
	}
	initialised := f.get32(f.optional + atInitialised)
	for _, s := range f.sections[n:] {
		initialised -= s.Size
	}
	clear(f.raw[f.table+sectionSize*n : f.table+sectionSize*len(f.sections)])
	f.raw = f.raw[:f.sections[n].Offset]
	f.put16(f.header+2, uint16(n))                               // #nosec G115 -- fewer than there were
	f.put32(f.optional+atImageSize, uint32((top+gap-1)/gap*gap)) // #nosec G115 -- lies below that of the image
	f.put32(f.optional+atInitialised, initialised)
	f.sections = f.sections[:n]
}
