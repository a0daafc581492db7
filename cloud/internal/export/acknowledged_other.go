//go:build !linux

package export

import (
	"context"
	"net"
)

// acknowledged cannot be known here: the end of the connection has to do.
func acknowledged(context.Context, *net.TCPConn) error { return nil }
