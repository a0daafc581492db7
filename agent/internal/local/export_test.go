package local

import (
	"context"
	"net"
)

// Tunnel serves one connection.
func (s *Server) Tunnel(ctx context.Context, c net.Conn) {
	defer part(c)
	s.tunnel(ctx, c)
}

// Limits of the room.
const (
	MaxJob   = maxJob
	MaxBurst = maxBurst
	Patience = patience
	Idle     = idle
	YieldIn  = yieldIn
)
