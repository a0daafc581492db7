package hotplug

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"syscall"
)

// message is what came over the socket.
type message struct {
	sender uint32 // port of whoever sent it; 0 is the kernel
	text   []byte
}

// errLost says that there were more messages than the socket could hold.
var errLost = errors.New("messages were lost")

// source is where messages come from. next blocks until Close.
type source interface {
	next() (message, error)
	Close() error
}

// socket is the kernel's own source [NETLINK_KOBJECT_UEVENT, group 1]; it
// needs no privilege, and the network of the host.
type socket struct {
	file *os.File
	raw  syscall.RawConn
	buf  []byte
}

func listen() (source, error) {
	fd, err := syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_RAW|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, syscall.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, fmt.Errorf("listen to the kernel: %w", err)
	}
	if err := syscall.Bind(fd, &syscall.SockaddrNetlink{Family: syscall.AF_NETLINK, Groups: 1}); err != nil {
		_ = syscall.Close(fd)
		return nil, fmt.Errorf("listen to the kernel: %w", err)
	}
	file := os.NewFile(uintptr(fd), "uevent")
	raw, err := file.SyscallConn()
	if err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("listen to the kernel: %w", err)
	}
	return &socket{file, raw, make([]byte, 8192)}, nil // the kernel's own are at most 2048
}

func (s *socket) next() (m message, err error) {
	e := s.raw.Read(func(fd uintptr) bool {
		var n int
		var from syscall.Sockaddr
		n, from, err = syscall.Recvfrom(int(fd), s.buf, 0)
		if errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EINTR) {
			return false
		}
		m = message{sender: ^uint32(0), text: s.buf[:max(n, 0)]}
		if a, ok := from.(*syscall.SockaddrNetlink); ok {
			m.sender = a.Pid
		}
		return true
	})
	switch {
	case e != nil:
		return message{}, e // closed
	case errors.Is(err, syscall.ENOBUFS):
		return message{}, errLost
	}
	return m, err
}

// Close implements source.
func (s *socket) Close() error { return s.file.Close() }

// uevent is what matters of a message of the kernel.
type uevent struct{ action, path, subsystem string }

// parseUevent reads ACTION@PATH and then KEY=value, each ended by a zero
// [Linux, lib/kobject_uevent.c]. udev's own messages begin otherwise.
func parseUevent(text []byte) (u uevent, ok bool) {
	head, rest, ok := bytes.Cut(text, []byte{0})
	action, path, at := bytes.Cut(head, []byte{'@'})
	if !ok || !at || len(action) == 0 || len(path) == 0 || path[0] != '/' {
		return uevent{}, false
	}
	u = uevent{action: string(action), path: string(path)}
	for len(rest) > 0 {
		var pair []byte
		if pair, rest, ok = bytes.Cut(rest, []byte{0}); !ok {
			return uevent{}, false // cut off
		}
		key, value, is := bytes.Cut(pair, []byte{'='})
		switch {
		case !is:
			return uevent{}, false
		case string(key) == "ACTION" && string(value) != u.action, string(key) == "DEVPATH" && string(value) != u.path:
			return uevent{}, false
		case string(key) == "SUBSYSTEM":
			u.subsystem = string(value)
		}
	}
	return u, u.subsystem != ""
}

// matters reports whether what is on the USB bus may have changed.
func (m message) matters() bool {
	if m.sender != 0 {
		return false // anyone may send to the socket; only the kernel knows
	}
	u, ok := parseUevent(m.text)
	if !ok {
		return false
	}
	switch u.subsystem {
	case "usb", "usbmisc", "input", "tty", "hid":
		return u.action == "add" || u.action == "remove" || u.action == "bind" || u.action == "unbind" || u.action == "change"
	}
	return false
}
