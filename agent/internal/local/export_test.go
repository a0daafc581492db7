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

// Accept lets programs in that come to the first socket.
func (s *Server) Accept(ctx context.Context, l net.Listener) { _ = s.accept(ctx, l, s.tunnel) }

// Proof serves one connection to the second.
func (s *Server) Proof(ctx context.Context, c net.Conn) {
	defer part(c)
	s.proof(ctx, c)
}

// Wait returns when nobody is served any more.
func (s *Server) Wait() { s.wg.Wait() }
