package firmware

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
)

// disk is the till's disk: an image file behind a cache that forgets when the
// power goes, as that of a real disk does. QEMU reaches it as a network block
// device [NBD protocol], so a cut is exact, and what the guest has not flushed
// may be lost.
//
// At a cut each block of 4 KiB that was written since the last flush is kept or
// lost by a coin, for a disk writes in an order of its own. What was flushed, or
// written through, stays. A restart of the guest is no cut.
type disk struct {
	file *os.File
	size int64

	mu      sync.Mutex
	cache   map[int64][]byte // blocks since the last flush, by number
	order   []int64          // of the cache's blocks, oldest first
	written int64            // bytes since the power came on
	cutAt   int64            // of written; 0: never
	cut     func()           // takes the power away
	off     bool
}

const (
	block    = 4096
	maxCache = 32 << 20 / block // blocks; then the disk writes the oldest by itself

	maxRequest = 32 << 20 // bytes; QEMU asks for less
)

var errOff = errors.New("the power is off")

// openDisk opens an image file. Its size is that of the disk.
func openDisk(path string) (*disk, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0) // #nosec G304 -- the image of a test
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &disk{file: f, size: info.Size(), cache: map[int64][]byte{}}, nil
}

// readAt reads what the guest last wrote.
func (d *disk) readAt(b []byte, at int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.off {
		return errOff
	}
	if _, err := d.file.ReadAt(b, at); err != nil {
		return err
	}
	d.each(b, at, func(n int64, from int, part []byte) {
		if c := d.cache[n]; c != nil {
			copy(part, c[from:])
		}
	})
	return nil
}

// each calls do with every block that b at a place of the disk touches: its
// number, where in it the part begins, and the part.
func (d *disk) each(b []byte, at int64, do func(n int64, from int, part []byte)) {
	for len(b) > 0 {
		from := int(at % block)
		part := b[:min(len(b), block-from)]
		do(at/block, from, part)
		b, at = b[len(part):], at+int64(len(part))
	}
}

// writeAt takes what the guest writes, and may be where the power goes.
func (d *disk) writeAt(b []byte, at int64, through bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.off {
		return errOff
	}
	var errs []error
	d.each(b, at, func(n int64, from int, part []byte) {
		c := d.cache[n]
		if c == nil {
			c = make([]byte, min(block, d.size-n*block))
			if _, err := d.file.ReadAt(c, n*block); err != nil {
				errs = append(errs, err)
			}
			d.cache[n] = c
			d.order = append(d.order, n)
		}
		copy(c[from:], part)
		if through {
			errs = append(errs, d.settle(n))
		}
	})
	for len(d.cache) > maxCache && len(d.order) > 0 {
		errs = append(errs, d.settle(d.order[0]))
		d.order = d.order[1:]
	}
	if d.written += int64(len(b)); d.cutAt > 0 && d.written >= d.cutAt {
		d.off = true
		go d.cut()
	}
	return errors.Join(errs...)
}

// settle writes a block of the cache to the file.
func (d *disk) settle(n int64) error {
	c := d.cache[n]
	if c == nil {
		return nil
	}
	delete(d.cache, n)
	_, err := d.file.WriteAt(c, n*block)
	return err
}

// flush is the guest's: what it wrote so far survives a cut.
func (d *disk) flush() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.off {
		return errOff
	}
	var errs []error
	for _, n := range d.order {
		errs = append(errs, d.settle(n))
	}
	d.order = d.order[:0]
	return errors.Join(errs...)
}

// powerOff ends the disk. Of what was not flushed each block is kept when keep
// says so.
func (d *disk) powerOff(keep func() bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.file == nil {
		return nil
	}
	d.off = true
	var errs []error
	for _, n := range d.order {
		if d.cache[n] != nil && keep() {
			errs = append(errs, d.settle(n))
		}
	}
	errs = append(errs, d.file.Close())
	d.file, d.cache, d.order = nil, nil, nil
	return errors.Join(errs...)
}

// cutAfter lets the power go once so many bytes more are written.
func (d *disk) cutAfter(n int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cutAt = d.written + max(n, 1)
}

// total is how many bytes were written.
func (d *disk) total() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.written
}

// coin is thrown for each block at a cut.
func coin(seed, start uint64) func() bool {
	r := rand.New(rand.NewPCG(seed, start)) // #nosec G404 -- chance that can be had again
	return func() bool { return r.Uint64()&1 == 0 }
}

// Of the NBD protocol, as its document calls them.
const (
	nbdMagic       = 0x4e42444d41474943 // "NBDMAGIC"
	nbdOption      = 0x49484156454f5054 // "IHAVEOPT"
	nbdOptionReply = 0x3e889045565a9
	nbdRequest     = 0x25609513
	nbdReply       = 0x67446698

	optAbort, optGo                            = 2, 7
	repAck, repInfo, repUnsupported            = 1, 3, 1<<31 | 1
	cmdRead, cmdWrite, cmdDisconnect, cmdFlush = 0, 1, 2, 3
	flagFUA                                    = 1
	errIO, errInvalid                          = 5, 22
	exportFlags                                = 1 | 1<<2 | 1<<3 // flags are here, FLUSH, FUA
)

// serve lets one QEMU use the disk, until it hangs up; it does when it ends.
func (d *disk) serve(l net.Listener) {
	conn, err := l.Accept()
	_ = l.Close()
	if err != nil {
		return
	}
	_ = d.speak(conn) // QEMU is the one to complain
	_ = conn.Close()
}

// speak is the server's side of a connection.
func (d *disk) speak(conn io.ReadWriter) error {
	r, w := bufio.NewReaderSize(conn, 1<<16), bufio.NewWriterSize(conn, 1<<16)
	be := binary.BigEndian
	hello := be.AppendUint64(be.AppendUint64(nil, nbdMagic), nbdOption)
	if _, err := w.Write(be.AppendUint16(hello, 3)); err != nil { // fixed newstyle, no zeroes
		return err
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if _, err := io.ReadFull(r, make([]byte, 4)); err != nil { // the client's flags
		return err
	}
	if err := d.negotiate(r, w); err != nil {
		return err
	}
	head := make([]byte, 28)
	for {
		if _, err := io.ReadFull(r, head); err != nil {
			return err
		}
		if be.Uint32(head) != nbdRequest {
			return errors.New("NBD: not a request")
		}
		flags, command, at, n := be.Uint16(head[4:]), be.Uint16(head[6:]), be.Uint64(head[16:]), be.Uint32(head[24:])
		if command == cmdDisconnect {
			return nil
		}
		data, code, err := d.do(r, flags, command, at, n)
		if err != nil {
			return err
		}
		reply := be.AppendUint32(be.AppendUint32(nil, nbdReply), code)
		if _, err := w.Write(append(append(reply, head[8:16]...), data...)); err != nil {
			return err
		}
		if err := w.Flush(); err != nil {
			return err
		}
	}
}

// do carries out a request. The error is one of the connection, the code tells
// the client about the disk.
func (d *disk) do(r io.Reader, flags, command uint16, at uint64, n uint32) (data []byte, code uint32, err error) {
	if n > maxRequest {
		return nil, 0, fmt.Errorf("NBD: a request for %d bytes", n)
	}
	inside := at <= uint64(d.size) && uint64(n) <= uint64(d.size)-at // #nosec G115 -- a file's size
	switch command {
	case cmdWrite:
		b := make([]byte, n)
		if _, err := io.ReadFull(r, b); err != nil {
			return nil, 0, err
		}
		if !inside {
			return nil, errInvalid, nil
		}
		if d.writeAt(b, int64(at), flags&flagFUA != 0) != nil { // #nosec G115 -- inside
			return nil, errIO, nil
		}
	case cmdRead:
		if !inside {
			return nil, errInvalid, nil
		}
		data = make([]byte, n)
		if d.readAt(data, int64(at)) != nil { // #nosec G115 -- inside
			return nil, errIO, nil
		}
	case cmdFlush:
		if d.flush() != nil {
			return nil, errIO, nil
		}
	default:
		return nil, errInvalid, nil
	}
	return data, 0, nil
}

// negotiate answers the client's options up to the one that begins.
func (d *disk) negotiate(r io.Reader, w *bufio.Writer) error {
	be := binary.BigEndian
	head := make([]byte, 16)
	for {
		if _, err := io.ReadFull(r, head); err != nil {
			return err
		}
		option, n := be.Uint32(head[8:]), be.Uint32(head[12:])
		if be.Uint64(head) != nbdOption || n > block {
			return errors.New("NBD: not an option")
		}
		if _, err := io.ReadFull(r, make([]byte, n)); err != nil { // there is one export, whatever its name
			return err
		}
		answer := func(kind uint32, data []byte) {
			b := be.AppendUint32(be.AppendUint64(nil, nbdOptionReply), option)
			b = be.AppendUint32(be.AppendUint32(b, kind), uint32(len(data))) // #nosec G115 -- some bytes
			_, _ = w.Write(slices.Concat(b, data))                           // Flush tells
		}
		switch option {
		case optGo:
			info := be.AppendUint64(be.AppendUint16(nil, 0), uint64(d.size)) // #nosec G115 -- a file's size
			answer(repInfo, be.AppendUint16(info, exportFlags))
			answer(repAck, nil)
			return w.Flush()
		case optAbort:
			answer(repAck, nil)
			return errors.Join(errors.New("NBD: the client gave up"), w.Flush())
		default:
			answer(repUnsupported, nil)
		}
		if err := w.Flush(); err != nil {
			return err
		}
	}
}
