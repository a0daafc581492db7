package agent

import (
	"context"
	"net"
	"net/http"
	"time"

	"github.com/tillward/tillward/agent/internal/spool"
	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/hal"
)

func init() { strictTrail = true }

// Reason is the code of an error in the audit trail.
func Reason(err error) string { return reason(err) }

// Fetch gets a metadata file over what dial returns.
func Fetch(ctx context.Context, dial func(ctx context.Context, network, address string) (net.Conn, error)) error {
	m := &membership{http: serviceClient(&http.Transport{DialContext: dial})}
	_, err := m.fetch(ctx, "http://service/metadata/1.root.json", 1<<20)
	return err
}

// Listening lists what can be reached from the network.
func Listening(proc string) []string { return listening(proc) }

// Ask runs a command that says what is wrong.
func Ask(ctx context.Context, command ...string) string { return ask(ctx, command) }

// Wellness is how a peripheral counts for an update.
func Wellness(health hal.Health) string { return wellness(string(health)) }

// Outlived waits for the box to restart.
func Outlived(ctx context.Context) error { return outlived(ctx) }

// LookPause is how long after so many failures the reference is looked for again.
func LookPause(failures int) time.Duration { return lookPause(failures) }

// Aged is 1 from half of the life of metadata on, 2 once it has expired.
func Aged(now, signed, expires time.Time) int { return aged(now, signed, expires) }

// Watched are books on a spool, of which kept is told.
func Watched(s *spool.Spool, kept func(channel wire.Channel, payload []byte, how Keeping)) watched {
	return watched{s, kept}
}
