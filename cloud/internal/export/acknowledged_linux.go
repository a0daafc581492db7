package export

import (
	"context"
	"errors"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// acknowledged returns nil when the other machine has every byte of c, and an
// error when it refused some or says nothing.
func acknowledged(ctx context.Context, c *net.TCPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	end := time.Now().Add(time.Second) // though ctx may be over
	for {
		var open, refused int
		var failed error
		if err := raw.Control(func(fd uintptr) {
			var second error
			open, failed = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ)
			refused, second = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
			failed = errors.Join(failed, second)
		}); err != nil {
			return err
		}
		switch {
		case failed != nil:
			return failed
		case refused != 0:
			return closed(unix.Errno(refused))
		case open == 0:
			return nil
		case time.Now().After(end):
			return errors.New("the receiver does not take what is sent")
		}
		select {
		case <-ctx.Done():
		case <-time.After(5 * time.Millisecond):
		}
	}
}
