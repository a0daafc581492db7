package attack

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/tillward/tillward/provisioning/owner"
	"github.com/tillward/tillward/simulator"
	"github.com/tillward/tillward/simulator/swarm"
	"github.com/tillward/tillward/simulator/tpmfarm"
)

// Releases of the operating system on this desk; a device that has committed
// to the newer one must not come back with the older.
const (
	running = simulator.FirstOS
	newer   = "agent/9.9.9"
)

// firmware is what an honest box boots.
func firmware() tpmfarm.Firmware { return tpmfarm.Default(running) }

// open starts a service, an honest till with an agent, and nothing else.
func open(ctx context.Context, o simulator.Options) (_ *desk, err error) {
	d := &desk{}
	if d.maker, err = swarm.NewAuthority(nil); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, err
	}
	file := filepath.Join(o.Dir, "maker.pem")
	if err := os.WriteFile(file, d.maker.PEM(), 0o600); err != nil {
		return nil, err
	}
	o.Tills, o.EKRoots = 1, []string{file}
	if d.world, err = simulator.Open(ctx, o); err != nil {
		return nil, err
	}
	d.at = d.world.Endpoints()
	pem, err := os.ReadFile(d.at.Roots)
	if err != nil {
		d.close()
		return nil, err
	}
	d.roots = x509.NewCertPool()
	d.roots.AppendCertsFromPEM(pem)
	d.world.Tills[0].Boot(ctx)
	return d, nil
}

func (d *desk) close() {
	for _, b := range d.boxes {
		if b.dev != nil {
			_ = b.dev.Close()
		}
	}
	d.world.Close()
}

// seen is what the service says of a device.
type seen struct {
	ID         string    `json:"id"`
	Serial     string    `json:"serial"`
	Trust      string    `json:"trust"`
	Online     bool      `json:"online"`
	AttestedAt time.Time `json:"attested_at"`
}

// honest asks the till with the agent for evidence and reports whether it is
// attested by what it made after that moment.
func (d *desk) honest(ctx context.Context, after time.Time) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	asked := false
	err := d.world.Until(ctx, "the honest till is attested", func(ctx context.Context) (bool, error) {
		var page struct {
			Items []seen `json:"items"`
		}
		if err := d.world.Operator.Get(ctx, "/v1/devices?query="+d.world.Tills[0].Name, &page); err != nil {
			return false, err
		}
		for _, t := range page.Items {
			if t.Serial != d.world.Tills[0].Name || !t.Online {
				continue
			}
			if !asked {
				asked = d.world.Operator.Post(ctx, "/v1/devices/"+t.ID+"/attest", struct{}{}, nil) == nil
			}
			if t.Trust == "attested" && !t.AttestedAt.Before(after.Truncate(time.Millisecond)) {
				return true, nil
			}
		}
		return false, nil
	})
	if errors.Is(err, context.DeadlineExceeded) {
		return false, nil
	}
	return err == nil, err
}

// noted is the check of the alarm that the service wrote into its trail about
// a device since a moment; an alarm that is about one thing only is named by
// its kind.
func (d *desk) noted(ctx context.Context, device string, since time.Time) (check, text string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	err = d.world.Until(ctx, "the service notes the attack", func(ctx context.Context) (bool, error) {
		var page struct {
			Items []struct {
				At       time.Time         `json:"at"`
				Kind     string            `json:"kind"`
				Severity string            `json:"severity"`
				Subject  string            `json:"subject"`
				Detail   map[string]string `json:"detail"`
			} `json:"items"`
		}
		if err := d.world.Operator.Get(ctx, "/v1/audit?limit=200", &page); err != nil {
			return false, err
		}
		for _, e := range page.Items {
			if e.Subject == device && e.Severity == "alarm" && !e.At.Before(since.Truncate(time.Millisecond)) {
				check, text = cmp.Or(e.Detail["check"], e.Kind), e.Kind+": "+e.Detail["what"]+e.Detail["reason"]
				return true, nil
			}
		}
		return false, nil
	})
	return check, text, err
}

// tlsAlert reports whether the other side ended the handshake.
func tlsAlert(err error) bool {
	return err != nil && strings.Contains(err.Error(), "remote error: tls:")
}

// refusedClaim claims a device that must not be given out.
func (d *desk) refusedClaim(ctx context.Context, c owner.Claim) (outcome, error) {
	since := time.Now()
	if err := d.claim(ctx, c, "thief"); err == nil {
		return outcome{answer: "claimed"}, nil
	}
	check, text, err := d.noted(ctx, c.Device, since)
	return outcome{err == nil, check, text}, err
}

func (d *desk) claim(ctx context.Context, c owner.Claim, site string) error {
	return d.world.Operator.Post(ctx, "/v1/claims", map[string]string{"uri": c.URI(), "site": site}, nil)
}
