package script

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sandboxName is the name that this program is started under to become a
// sandbox.
const sandboxName = "tillward-sandbox"

// What a sandbox is told on descriptor 3; on 4 it says what went wrong, or that
// it stands, and then what is wrong with the script.
const (
	specFD   = 3
	statusFD = 4
	stands   = "!"
)

// spec is what a sandbox is told.
type spec struct {
	Root    string        `json:"root"`    // empty folder to build the view in
	Release string        `json:"release"` // seen as /release, read-only
	Work    string        `json:"work"`    // seen as /work
	Devices []string      `json:"devices"`
	Args    []string      `json:"args"` // none: end once the sandbox stands
	Env     []string      `json:"env"`
	UID     int           `json:"uid"` // in the namespace, and group
	Quota   int64         `json:"quota"`
	Time    time.Duration `json:"time"`
}

// view is what of the box a script may look at: programs and what they load.
var view = []string{
	"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/alternatives", "/etc/localtime",
}

var nodes = []string{"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"}

const maxMemory = 256 << 20 // of each process

const scratch = "size=16m,nr_inodes=1024,mode=1777" // /tmp

// A sandbox is this very program under another name: a static agent brings no
// other. It stands before main, so that no program that carries the handler can
// forget it and run a second agent in its place.
func init() {
	if len(os.Args) == 0 || os.Args[0] != sandboxName {
		return
	}
	status := os.NewFile(statusFD, "status")
	unix.CloseOnExec(statusFD)
	err := enter()
	if err == nil {
		os.Exit(0)
	}
	fmt.Fprint(status, err)
	os.Exit(1)
}

// enter takes what it has, down to what the spec leaves, and becomes the script.
func enter() error {
	// Rights belong to a thread: the one that gives them up is the one that executes.
	runtime.LockOSThread()
	in := os.NewFile(specFD, "spec")
	var s spec
	if err := errors.Join(json.NewDecoder(in).Decode(&s), in.Close()); err != nil {
		return fmt.Errorf("read what to do: %w", err)
	}
	// When memory runs out, the kernel is to take the script first.
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("1000"), 0); err != nil {
		return err
	}
	if err := unix.Setpriority(unix.PRIO_PROCESS, 0, 10); err != nil {
		return fmt.Errorf("lower priority: %w", err)
	}
	if err := s.build(); err != nil {
		return err
	}
	if err := s.shed(); err != nil {
		return err
	}
	return s.become()
}

// become executes the script, if there is one. The limit of its memory comes at
// the last moment: it is meant for the script, and this program, which may hold
// more, must not need any after that.
func (s spec) become() error {
	if len(s.Args) == 0 {
		_, err := unix.Write(statusFD, []byte(stands))
		return err
	}
	args, err := syscall.SlicePtrFromStrings(s.Args)
	if err != nil {
		return err
	}
	env, err := syscall.SlicePtrFromStrings(s.Env)
	if err != nil {
		return err
	}
	debug.SetGCPercent(-1)
	if _, err := unix.Write(statusFD, []byte(stands)); err != nil {
		return err
	}
	limit := [2]uint64{maxMemory, maxMemory} // struct rlimit64
	// #nosec G103 -- the kernel takes addresses
	_, _, errno := unix.RawSyscall6(unix.SYS_PRLIMIT64, 0, unix.RLIMIT_DATA, uintptr(unsafe.Pointer(&limit)), 0, 0, 0)
	if errno == 0 {
		// #nosec G103 -- as above
		_, _, errno = unix.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(args[0])), uintptr(unsafe.Pointer(&args[0])), uintptr(unsafe.Pointer(&env[0])))
	}
	return errno
}

// build makes a view of the box and moves into it.
func (s spec) build() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("part from the mounts of the box: %w", err)
	}
	if err := unix.Mount("tmpfs", s.Root, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "size=1m,mode=0755"); err != nil {
		return fmt.Errorf("make a view: %w", err)
	}
	for _, p := range view {
		if err := s.show(p, p, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV); err != nil {
			return err
		}
	}
	for _, p := range append(nodes, s.Devices...) {
		if err := s.show(p, p, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC); err != nil {
			return err
		}
	}
	if err := s.show(s.Release, "/release", unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV); err != nil {
		return err
	}
	// What is written is not executed: what runs was signed.
	if err := s.show(s.Work, "/work", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC); err != nil {
		return err
	}
	const plain = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	for _, d := range []string{"/tmp", "/proc"} {
		if err := os.Mkdir(s.Root+d, 0o755); err != nil { // #nosec G301 -- of a view of its own
			return err
		}
	}
	if err := unix.Mount("tmpfs", s.Root+"/tmp", "tmpfs", plain, scratch); err != nil {
		return fmt.Errorf("make /tmp: %w", err)
	}
	// Where the box itself runs in a container /proc may not be had; scripts do without.
	_ = unix.Mount("proc", s.Root+"/proc", "proc", plain|unix.MS_RDONLY, "subset=pid")
	if err := os.Chdir(s.Root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil { // [pivot_root(2)]: the old root comes to lie on the new
		return fmt.Errorf("move into the view: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave the box behind: %w", err)
	}
	if err := attributes("/", unix.MOUNT_ATTR_RDONLY, 0); err != nil {
		return err
	}
	return os.Chdir("/work")
}

// show makes what lies at from visible at to, if there is anything. Links are
// made again: where they lead is looked up in the view.
func (s spec) show(from, to string, attr uint64) error {
	fi, err := os.Lstat(from)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	at := s.Root + to
	if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil { // #nosec G301 -- of a view of its own
		return err
	}
	if fi.Mode()&fs.ModeSymlink != 0 && !strings.HasPrefix(from, "/dev/") {
		link, err := os.Readlink(from)
		if err != nil {
			return err
		}
		return os.Symlink(link, at)
	}
	if fi.IsDir() {
		err = os.Mkdir(at, 0o755) // #nosec G301 -- of a view of its own
	} else {
		err = os.WriteFile(at, nil, 0o600)
	}
	if err != nil {
		return err
	}
	if err := unix.Mount(from, at, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("show %s: %w", to, err)
	}
	return attributes(at, attr, unix.AT_RECURSIVE)
}

// attributes adds to what a mount forbids; mount_setattr [Linux 5.12] reaches
// what is mounted below, too, which a remount does not.
func attributes(path string, attr uint64, flags uint) error {
	if err := unix.MountSetattr(unix.AT_FDCWD, path, flags, &unix.MountAttr{Attr_set: attr}); err != nil {
		return fmt.Errorf("protect %s: %w", path, err)
	}
	return nil
}

// shed gives up every right, for good.
func (s spec) shed() error {
	for c := range uintptr(64) {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	const noRoot, noAmbient = 1<<0 | 1<<1, 1<<6 | 1<<7 // each with its lock [capabilities(7)]
	if err := unix.Prctl(unix.PR_SET_SECUREBITS, noRoot|noAmbient, 0, 0, 0); err != nil {
		return fmt.Errorf("give up the rights of root: %w", err)
	}
	if s.UID != 0 { // an ordinary user cannot be another
		// The functions of package syscall would change all threads, and this one is all that matters.
		for _, c := range [...][2]uintptr{{unix.SYS_SETGROUPS, 0}, {unix.SYS_SETRESGID, uintptr(s.UID)}, {unix.SYS_SETRESUID, uintptr(s.UID)}} {
			a := [3]uintptr{c[1], c[1], c[1]}
			if c[0] == unix.SYS_SETGROUPS {
				a = [3]uintptr{}
			}
			if _, _, errno := unix.RawSyscall(c[0], a[0], a[1], a[2]); errno != 0 {
				return fmt.Errorf("become the user of scripts: %w", errno)
			}
		}
	}
	none := [2]unix.CapUserData{}
	if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	// A change of user takes it away. When the agent ends, so does the script.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("tie to the agent: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("forbid new rights: %w", err)
	}
	unix.Umask(0o077)
	for _, l := range [...]struct {
		what int
		max  uint64
	}{
		{unix.RLIMIT_CORE, 0},
		{unix.RLIMIT_CPU, uint64(s.Time/time.Second) + 1},
		{unix.RLIMIT_FSIZE, uint64(s.Quota)},
		{unix.RLIMIT_MEMLOCK, 0},
		{unix.RLIMIT_MSGQUEUE, 0},
		{unix.RLIMIT_NOFILE, 64},
		{unix.RLIMIT_NPROC, 48},
	} {
		if err := unix.Setrlimit(l.what, &unix.Rlimit{Cur: l.max, Max: l.max}); err != nil {
			return fmt.Errorf("limit %d: %w", l.what, err)
		}
	}
	return restrict()
}
