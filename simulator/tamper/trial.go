package tamper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/tillward/tillward/provisioning/trust"
	"github.com/tillward/tillward/simulator"
	"github.com/tillward/tillward/simulator/emulator"
	"github.com/tillward/tillward/simulator/tpmfarm"
)

// proof is how long what is on trial may take to prove itself where it never
// will.
const proof = 8 // seconds

// neverConnects is a genuine agent, signed by all who must, that checks itself
// well and then does not find its service.
func neverConnects(ctx context.Context, l *lane) error {
	to := l.s.opt.UpdateTo[:len(l.s.opt.UpdateTo)-1] + "9"
	agent, err := renamed(ctx, l.s.opt.Next, l.s.world.Dir(), l.s.opt.UpdateTo, to)
	if err != nil {
		return err
	}
	lost := filepath.Join(l.s.world.Dir(), "lost-agent")
	script := `#!/bin/sh
[ "$1" = -selfcheck ] && exec ` + agent + ` -selfcheck
sed 's/^broker = .*/broker = "127.0.0.1:9"/' "$2" >"$2.lost"
exec ` + agent + ` -config "$2.lost"
`
	if err := os.WriteFile(lost, []byte(script), 0o600); err != nil {
		return err
	}
	l.s.mu.Lock()
	err = l.s.world.Release(ctx, to, lost)
	l.s.mu.Unlock()
	if err != nil {
		return err
	}
	s := steps{"OFFERED": 60, "DOWNLOADING": 60, "CHECKING": proof}
	if err := l.try(ctx, "an agent that does not reach the fleet service", "agent/"+to, s, "unproven"); err != nil {
		return err
	}
	// The twin is an agent that does.
	l.honest = func(ctx context.Context) (bool, error) {
		e, err := l.offer(ctx, "agent/"+l.s.opt.UpdateTo, usual)
		if err != nil {
			return false, err
		}
		l.unwilling = fmt.Sprintf("agent/%s: %s %s: %s", l.s.opt.UpdateTo, e.State, e.Reason, e.Text)
		return e.State == "SUCCEEDED", l.settled(ctx)
	}
	return nil
}

// breaksPrinter is a system image that boots, connects, and leaves the printer
// dead; and an application that does its work, and does the same. Where this
// machine has no RAUC, the application is all there is.
func breaksPrinter(ctx context.Context, l *lane) error {
	s := steps{"OFFERED": 60, "DOWNLOADING": 60, "CHECKING": proof}
	const good, bad = "1.1.1", "1.1.0"
	if l.box.there() {
		if err := l.image(ctx, bad); err != nil {
			return err
		}
		mend := l.breaking(ctx, func() bool { return l.box.runs() == "B" })
		err := l.try(ctx, "an image after which the printer answers no more", "os/"+model+"/prod/"+bad, s, "unhealthy")
		mend()
		if err := errors.Join(err, l.settled(ctx), l.printing(ctx)); err != nil {
			return err
		}
	} else {
		l.what = "an application that breaks the printer, for this machine has no RAUC to boot images with: " + l.box.says()
	}
	r, err := l.fresh(ctx)
	if err != nil {
		return err
	}
	mend := l.breaking(ctx, func() bool {
		to, err := os.Readlink(filepath.Join(l.till.Dir(), "apps", l.till.Name, "current"))
		return err == nil && filepath.Base(to) == r.version
	})
	err = l.try(ctx, "an application after which the printer answers no more", r.id, s, "unhealthy")
	mend()
	if err != nil || !l.box.there() {
		return errors.Join(err, l.printing(ctx))
	}
	// The twin is an image that does not break it, in the same slot.
	l.honest = func(ctx context.Context) (bool, error) {
		if err := l.image(ctx, good); err != nil {
			return false, err
		}
		e, err := l.offer(ctx, "os/"+model+"/prod/"+good, usual)
		l.unwilling = fmt.Sprintf("os %s: %s %s: %s", good, e.State, e.Reason, e.Text)
		return e.State == "SUCCEEDED" && l.box.runs() == "B", err
	}
	return l.printing(ctx)
}

// printing waits until the till knows that its printer is well again.
func (l *lane) printing(ctx context.Context) error {
	return l.s.world.Until(ctx, "the printer of "+l.till.Name+" is well", func(ctx context.Context) (bool, error) {
		var d struct {
			Peripherals []struct{ ID, Health string } `json:"peripherals"`
		}
		err := l.s.world.Operator.Get(ctx, "/v1/devices/"+l.device, &d)
		for _, p := range d.Peripherals {
			if p.ID == "receipt" && p.Health == "OK" {
				return err == nil, err
			}
		}
		return false, err
	})
}

// breaking keeps the printer broken while something runs. It returns what ends
// that and mends it.
func (l *lane) breaking(ctx context.Context, runs func() bool) (mend func()) {
	ctx, stop := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			l.till.Spoil(emulator.Unrecoverable, runs())
			select {
			case <-ctx.Done():
			case <-tick.C:
			}
		}
		l.till.Spoil(emulator.Unrecoverable, false)
	}()
	return func() {
		stop()
		<-done
	}
}

// image publishes a system image with how boxes boot it. Its bundle has the
// format plain, which the release tool refuses for the field: not every kernel
// that this runs on has dm-verity. So the repository is signed without the tool.
func (l *lane) image(ctx context.Context, version string) error {
	bundle, err := l.box.bundle(version)
	if err != nil {
		return err
	}
	id := "os/" + model + "/prod/" + version
	log := filepath.Join(l.s.world.Dir(), "image-"+version+".log")
	if err := os.WriteFile(log, tpmfarm.Default(simulator.FirstOS).Log(), 0o600); err != nil {
		return err
	}
	return l.s.publish(ctx, func() error {
		return errors.Join(
			(&trust.Repository{Dir: l.s.folder("repo")}).Add([]trust.NewTarget{{
				Path: id + "/bundle.raucb", File: bundle.Path,
				Custom: trust.Custom{Class: trust.ClassOS, Version: version, RAUC: &trust.RAUC{
					Compatible: l.box.compatible(), Version: version, Format: "plain", ManifestHash: bundle.ManifestHash,
				}},
			}}, l.s.keys),
			l.s.world.Provision(ctx, "boot", "observe", "--log", log, "--model", model, "--release", id, "--out", log+".json"),
			l.s.world.Provision(ctx, "boot", "approve", "--log", log, "--reference", log+".json", "--key", l.s.folder("seal.pem")),
			l.s.world.Provision(ctx, "boot", "add", "--repo", l.s.folder("repo"), "--keys", l.s.folder("keys"), "--reference", log+".json"),
		)
	}, id, "boot/"+model)
}
