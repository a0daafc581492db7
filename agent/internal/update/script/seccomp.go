package script

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// arches are the machines whose calls the filter knows: little-endian, with
// the flags of clone first.
var arches = map[string]uint32{
	"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64, "arm": unix.AUDIT_ARCH_ARM, "riscv64": unix.AUDIT_ARCH_RISCV64,
}

// denied are calls that nothing a script does needs, and through which kernels
// have been broken into.
var denied = []uint32{
	unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_PIVOT_ROOT, unix.SYS_CHROOT, unix.SYS_UNSHARE, unix.SYS_SETNS,
	unix.SYS_OPEN_TREE, unix.SYS_MOVE_MOUNT, unix.SYS_FSOPEN, unix.SYS_FSCONFIG, unix.SYS_FSMOUNT, unix.SYS_FSPICK, unix.SYS_MOUNT_SETATTR,
	unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_KCMP, unix.SYS_PIDFD_GETFD,
	unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD, unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER,
	unix.SYS_KEYCTL, unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY, unix.SYS_NAME_TO_HANDLE_AT, unix.SYS_OPEN_BY_HANDLE_AT,
	unix.SYS_KEXEC_LOAD, unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE, unix.SYS_REBOOT,
	unix.SYS_SWAPON, unix.SYS_SWAPOFF, unix.SYS_ACCT, unix.SYS_QUOTACTL, unix.SYS_SYSLOG, unix.SYS_PERSONALITY,
}

const newNamespaces = unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP

// filter builds the program [seccomp(2)]. Whatever it does not name is allowed:
// the namespaces hold the script, the filter keeps it off the kernel's edges.
func filter() ([]unix.SockFilter, error) {
	arch, ok := arches[runtime.GOARCH]
	if !ok {
		return nil, fmt.Errorf("no filter of system calls for %s", runtime.GOARCH)
	}
	const (
		nr, archAt, arg0 = 0, 4, 16 // offsets in struct seccomp_data
		x32              = 0x40000000
	)
	load := func(at uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: at}
	}
	ret := func(k uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: k} }
	jump := func(op uint16, k uint32, yes, no uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | op | unix.BPF_K, K: k, Jt: yes, Jf: no}
	}
	const refuse = unix.SECCOMP_RET_ERRNO
	p := []unix.SockFilter{
		load(archAt), jump(unix.BPF_JEQ, arch, 1, 0), ret(unix.SECCOMP_RET_KILL_PROCESS), // another machine's calls
		load(nr), jump(unix.BPF_JGE, x32, 0, 1), ret(unix.SECCOMP_RET_KILL_PROCESS),
	}
	for _, n := range denied {
		p = append(p, jump(unix.BPF_JEQ, n, 0, 1), ret(refuse|uint32(unix.EPERM)))
	}
	return append(p,
		// The flags of clone3 lie in memory, where no filter sees them: without it, clone is used.
		jump(unix.BPF_JEQ, unix.SYS_CLONE3, 0, 1), ret(refuse|uint32(unix.ENOSYS)),
		jump(unix.BPF_JEQ, unix.SYS_CLONE, 0, 3),
		load(arg0), jump(unix.BPF_JSET, newNamespaces, 0, 4), ret(refuse|uint32(unix.EPERM)),
		// A network namespace does not hold every family, e.g. not that of virtual machines.
		jump(unix.BPF_JEQ, unix.SYS_SOCKET, 0, 2),
		load(arg0), jump(unix.BPF_JEQ, unix.AF_UNIX, 0, 1),
		ret(unix.SECCOMP_RET_ALLOW), ret(refuse|uint32(unix.EAFNOSUPPORT)),
	), nil
}

// restrict sets the filter for this thread and what it becomes.
func restrict() error {
	p, err := filter()
	if err != nil {
		return err
	}
	prog := unix.SockFprog{Len: uint16(len(p)), Filter: &p[0]}
	_, _, errno := unix.RawSyscall(unix.SYS_PRCTL, unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&prog))) // #nosec G103 -- the kernel takes an address
	if errno != 0 {
		return errors.Join(errors.New("filter system calls"), errno)
	}
	return nil
}
