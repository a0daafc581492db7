package simulator

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// diskSize holds two agents, what is fetched of a third, and the books.
const diskSize = 192 << 20

// diskOptions take away what ext4 does for careless programs; nothing is
// written by time alone.
const diskOptions = "loop,data=writeback,noauto_da_alloc,commit=600,noatime"

// fsShutdown is FS_IOC_SHUTDOWN, _IOR('X', 125, __u32) [linux/fs.h]; its
// argument is a loss.
const fsShutdown = 0x8004587d

// disk is the disk of a till: an ext4 on a loop device. When its power is cut,
// it keeps what was synced, and of the rest what happened to be written.
type disk struct {
	image, dir string

	// sees is called with each file or folder that a process of the till opens on
	// the disk, while that waits. It must not open anything there itself.
	sees func(pid int, path string)

	events *os.File // of fanotify; nil: not mounted
	done   chan struct{}
}

// newDisk makes a disk and mounts it at dir. It needs root.
func newDisk(image, dir string, sees func(pid int, path string)) (*disk, error) {
	if os.Getuid() != 0 {
		return nil, errors.New("power cuts need loop devices: run this as root")
	}
	d := &disk{image: image, dir: dir, sees: sees}
	f, err := os.OpenFile(image, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600) // #nosec G304 -- the simulator's own
	if err != nil {
		return nil, fmt.Errorf("disk: %w", err)
	}
	if err := errors.Join(f.Truncate(diskSize), f.Close(), os.MkdirAll(dir, 0o750)); err != nil {
		return nil, fmt.Errorf("disk: %w", err)
	}
	if err := tool("mkfs.ext4", "-q", "-O", "^resize_inode", "-J", "size=8", "-E", "lazy_itable_init=0,lazy_journal_init=0", image); err != nil {
		return nil, err
	}
	return d, d.mount()
}

// tool runs a program of the system.
func tool(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil { // #nosec G204 -- fixed programs
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

// mount mounts the disk; what a cut left is put right by the journal of the
// file system, as in a boot.
func (d *disk) mount() error {
	if err := tool("mount", "-t", "ext4", "-o", diskOptions, d.image, d.dir); err != nil {
		return fmt.Errorf("%w (loop devices and ext4 are needed)", err)
	}
	if err := os.Chmod(d.dir, 0o711); err != nil { // #nosec G302 -- the POS application's user passes
		return errors.Join(err, d.unmount())
	}
	if err := d.watch(); err != nil {
		return errors.Join(err, d.unmount())
	}
	return nil
}

// loss is what a cut takes away of what was not synced.
type loss int

const (
	everything loss = unix.FS_SHUTDOWN_FLAGS_NOLOGFLUSH
	content    loss = unix.FS_SHUTDOWN_FLAGS_LOGFLUSH // the names are there, what is in the files is not
	nothing    loss = 0                               // it had just been written
)

// String implements fmt.Stringer.
func (l loss) String() string {
	return map[loss]string{everything: "all that was not synced", content: "content that was not synced", nothing: "nothing"}[l]
}

// cut is the end of the power: from here on nothing reaches the disk. Nothing
// of the till may run any more.
func (d *disk) cut(l loss) error {
	f, err := os.Open(d.dir)
	if err != nil {
		return fmt.Errorf("cut: %w", err)
	}
	err = unix.IoctlSetPointerInt(int(f.Fd()), fsShutdown, int(l))
	_ = f.Close()
	if err != nil {
		return fmt.Errorf("cut the power of %s: %w", d.dir, err)
	}
	if err := d.unmount(); err != nil {
		return err
	}
	return d.part()
}

// part goes on with a copy where the kernel still holds the disk, as it does
// while somebody has a copy of our mounts: mounted again it would be the one
// that is off.
func (d *disk) part() error {
	held, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return fmt.Errorf("loop devices: %w", err)
	}
	for _, file := range held {
		b, err := os.ReadFile(file) // #nosec G304 -- of the kernel
		if err != nil || strings.TrimSpace(string(b)) != d.image {
			continue
		}
		next := d.image + ".next"
		return errors.Join(tool("cp", "--sparse=always", d.image, next), os.Rename(next, d.image))
	}
	return nil
}

// unmount takes the disk away. What was opened on it has just been killed, and
// may take a moment to be gone.
func (d *disk) unmount() error {
	if d.events != nil {
		_ = d.events.Close()
		<-d.done
		d.events = nil
	}
	var err error
	for until := time.Now().Add(10 * time.Second); time.Now().Before(until); time.Sleep(20 * time.Millisecond) {
		if err = tool("umount", d.dir); err == nil {
			return nil
		}
	}
	return err
}

// watch has the kernel ask before anything on the disk is opened.
func (d *disk) watch() error {
	fd, err := unix.FanotifyInit(unix.FAN_CLASS_CONTENT|unix.FAN_CLOEXEC|unix.FAN_NONBLOCK|unix.FAN_UNLIMITED_QUEUE, unix.O_RDONLY|unix.O_LARGEFILE|unix.O_CLOEXEC)
	if err != nil {
		return fmt.Errorf("watch the disk: %w", err)
	}
	f := os.NewFile(uintptr(fd), "fanotify") // #nosec G115 -- a file descriptor
	if err := unix.FanotifyMark(fd, unix.FAN_MARK_ADD|unix.FAN_MARK_FILESYSTEM, unix.FAN_OPEN_PERM|unix.FAN_ONDIR, unix.AT_FDCWD, d.dir); err != nil {
		return errors.Join(fmt.Errorf("watch the disk: %w", err), f.Close())
	}
	d.events, d.done = f, make(chan struct{})
	go func() {
		defer close(d.done)
		d.answer(f)
	}()
	return nil
}

// answer lets everybody open what they want, and tells sees of it.
func (d *disk) answer(f *os.File) {
	self := int32(os.Getpid()) // #nosec G115 -- a process id
	buf := make([]byte, 16<<10)
	for {
		n, err := f.Read(buf)
		if err != nil {
			return
		}
		for b := buf[:n]; len(b) >= unix.FAN_EVENT_METADATA_LEN; {
			var e unix.FanotifyEventMetadata
			if err := binary.Read(bytes.NewReader(b), binary.NativeEndian, &e); err != nil || int(e.Event_len) > len(b) || e.Event_len < unix.FAN_EVENT_METADATA_LEN {
				return
			}
			b = b[e.Event_len:]
			if e.Fd < 0 {
				continue
			}
			if e.Pid != self && d.sees != nil {
				if path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", e.Fd)); err == nil {
					d.sees(int(e.Pid), strings.TrimPrefix(path, d.dir+"/"))
				}
			}
			var r bytes.Buffer
			_ = binary.Write(&r, binary.NativeEndian, unix.FanotifyResponse{Fd: e.Fd, Response: unix.FAN_ALLOW})
			_, _ = f.Write(r.Bytes()) // who asked may be dead
			_ = unix.Close(int(e.Fd))
		}
	}
}

// rack holds the disks of a run, in memory where there is room: what a cut
// leaves is a matter of order, not of the medium.
type rack struct {
	dir   string
	disks []*disk
	guard *exec.Cmd
	life  *os.File
	once  sync.Once
}

// newRack makes the folder of the images.
func newRack(spare string, disks int) (*rack, error) {
	base := spare
	var st syscall.Statfs_t
	if err := syscall.Statfs("/dev/shm", &st); err == nil && st.Bavail*uint64(st.Bsize) > uint64(disks+1)*diskSize { // #nosec G115 -- sizes
		base = "/dev/shm"
	}
	dir, err := os.MkdirTemp(base, "tillward-disks-")
	if err != nil {
		return nil, fmt.Errorf("disks: %w", err)
	}
	return &rack{dir: dir}, nil
}

// add makes a disk, mounted at dir.
func (r *rack) add(name, dir string, sees func(pid int, path string)) (*disk, error) {
	d, err := newDisk(filepath.Join(r.dir, name+".img"), dir, sees)
	if d != nil {
		r.disks = append(r.disks, d)
	}
	return d, err
}

// watchOver takes the disks away should this process be killed: what is mounted
// does not go with it. Agents do, and theirs are the only files open there.
func (r *rack) watchOver() error {
	in, life, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("guard of the disks: %w", err)
	}
	args := []string{"-c", `read -r _; images=$1; shift; for d; do umount -q "$d" || umount -q -l "$d"; done; rm -rf "$images"`, "guard", r.dir}
	for _, d := range r.disks {
		args = append(args, d.dir)
	}
	r.guard = exec.CommandContext(context.Background(), "/bin/sh", args...) // #nosec G204 -- its words are ours
	r.guard.Stdin = in
	r.guard.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a Ctrl-C is for the others
	r.life = life
	return errors.Join(r.guard.Start(), in.Close())
}

// close takes the disks away. The agents must have ended.
func (r *rack) close() (err error) {
	r.once.Do(func() {
		for _, d := range r.disks {
			if d.events != nil {
				err = errors.Join(err, d.unmount())
			}
		}
		if r.life != nil {
			err = errors.Join(err, r.life.Close(), r.guard.Wait())
		}
		err = errors.Join(err, os.RemoveAll(r.dir))
	})
	return err
}
