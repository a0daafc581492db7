package agent

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/hal/virtual"
)

// driver is a fake that opens what the test says.
type driver struct {
	name string
	open func(context.Context, hal.Config) (hal.Device, error)
}

func (d driver) Name() string { return d.name }

func (d driver) Open(ctx context.Context, c hal.Config) (hal.Device, error) { return d.open(ctx, c) }

// printer is a fake that takes jobs, tests itself, and has a drawer behind it.
type printer struct {
	hal.Device
	mu    sync.Mutex
	paper bytes.Buffer
	parts []hal.Device
}

func (p *printer) Parts() []hal.Device { return p.parts }

func (p *printer) Print(_ context.Context, job io.Reader) (hal.Job, error) {
	b, err := io.ReadAll(job)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.paper.Write(b)
	return hal.Job{Bytes: int64(len(b)), Confirmed: true}, err
}

func (p *printer) has() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.paper.String()
}

func (p *printer) Status(ctx context.Context) (hal.Status, error) {
	return p.Device.(hal.StatusReader).Status(ctx)
}

func (p *printer) CheckHealth(_ context.Context, l hal.Level) (hal.Report, error) {
	if l != hal.Internal {
		return hal.Report{Checks: []hal.Check{{ID: "page", Code: "REC_EMPTY"}}}, &hal.Error{Code: "E_OFFLINE", Op: "check", Err: errors.New("secret")}
	}
	return hal.Report{OK: true, Text: "secret", Checks: []hal.Check{{ID: "status", OK: true, Code: "9000"}}}, nil
}

// stubborn does not close.
type stubborn struct {
	hal.Device
	release chan struct{}
}

func (d stubborn) Close() error { <-d.release; return d.Device.Close() }

func virtualDevice(t *testing.T, id, category string) hal.Device {
	t.Helper()
	d, err := virtual.Driver{}.Open(t.Context(), hal.Config{ID: id, Claim: hal.Own, Options: map[string]string{"category": category}})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// counter is an agent that watches its peripherals and does nothing else.
func counter(t *testing.T, patience time.Duration, devices []DeviceConfig, drivers ...hal.Driver) (*Agent, func()) {
	t.Helper()
	cfg := DefaultConfig()
	cfg.StateDir, cfg.Devices = t.TempDir(), devices
	cfg.Telemetry.Poll.Duration, cfg.Telemetry.Batch.Duration = 100*time.Millisecond, 100*time.Millisecond
	cfg.Update.AppsDir = filepath.Join(cfg.StateDir, "apps")
	a := New(cfg, Options{Version: "1.0.0", Slot: "a", Drivers: hal.NewRegistry(drivers...), Log: slog.New(slog.DiscardHandler)})
	a.devices.patience = patience
	if err := a.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = a.watch(ctx) })
	wg.Go(func() { _ = a.sell(ctx) })
	stop := sync.OnceFunc(func() { cancel(); wg.Wait(); a.close() })
	t.Cleanup(stop)
	return a, stop
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !is(); {
		if time.Now().After(deadline) {
			t.Fatal("never " + what)
		}
		time.Sleep(time.Millisecond)
	}
}

func (a *Agent) seen(id string) (p wire.Peripheral) {
	for _, p = range a.monitor.Snapshot() {
		if p.ID == id {
			return p
		}
	}
	return wire.Peripheral{}
}

// TestDriversThatFail holds that a driver which hangs, panics or fails while it
// opens or closes costs its own peripheral only, and that each is told.
func TestDriversThatFail(t *testing.T) {
	release := make(chan struct{})
	tries := make(chan struct{}, 100)
	drivers := []hal.Driver{
		virtual.Driver{},
		driver{"hangs", func(_ context.Context, c hal.Config) (hal.Device, error) {
			<-release
			return virtualDevice(t, c.ID, ""), nil
		}},
		driver{"panics", func(context.Context, hal.Config) (hal.Device, error) { panic("no") }},
		driver{"fails", func(_ context.Context, c hal.Config) (hal.Device, error) {
			tries <- struct{}{}
			if len(tries) < 2 {
				return nil, &hal.Error{Code: "E_BUSY", Op: "open"}
			}
			return virtualDevice(t, c.ID, ""), nil
		}},
		driver{"clings", func(_ context.Context, c hal.Config) (hal.Device, error) {
			return stubborn{virtualDevice(t, c.ID, ""), release}, nil
		}},
	}
	devices := []DeviceConfig{
		{ID: "good", Driver: "virtual"},
		{ID: "hangs", Driver: "hangs"},
		{ID: "panics", Driver: "panics"},
		{ID: "fails", Driver: "fails"},
		{ID: "clings", Driver: "clings"},
		{ID: "nobody", Driver: "nobody"},
		{ID: "wrong", Driver: "virtual", Options: map[string]string{"colour": "red"}},
	}
	a, stop := counter(t, 50*time.Millisecond, devices, drivers...)
	for id, want := range map[string]string{
		"good": "OK ", "hangs": "Offline M_TIMEOUT", "panics": "Offline M_DRIVER_PANIC", "nobody": "Unknown M_NO_DRIVER", "wrong": "Offline E_ILLEGAL", "clings": "Unknown M_NO_SENSOR",
	} {
		eventually(t, id+" "+want, func() bool { p := a.seen(id); return p.Health+" "+p.Reason == want })
	}
	eventually(t, "fails: opened at the second try", func() bool { return a.seen("fails").Health == "OK" })
	if err := a.driversLoaded(); err == nil || !strings.Contains(err.Error(), "3 of 7") {
		t.Errorf("drivers loaded: %v", err)
	}
	close(release)
	eventually(t, "hangs: opened in the end", func() bool { return a.seen("hangs").Health == "OK" })
	stop()
}

// TestClosesInTime holds that a driver which hangs in Close does not keep the
// agent from ending; it ends, and the driver still hangs.
func TestClosesInTime(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	a, stop := counter(t, time.Minute, []DeviceConfig{{ID: "clings", Driver: "clings"}}, driver{"clings", func(_ context.Context, c hal.Config) (hal.Device, error) {
		return stubborn{virtualDevice(t, c.ID, ""), release}, nil
	}})
	eventually(t, "open", func() bool { return a.devices.count() == 1 })
	stop()
}

// TestOpensTooLate holds that a driver which opens its device when the others are
// being closed does no harm, and that its device is closed too.
func TestOpensTooLate(t *testing.T) {
	agent, opening, closed := make(chan *Agent, 1), make(chan struct{}), make(chan struct{})
	a, stop := counter(t, time.Minute, []DeviceConfig{{ID: "late", Driver: "late"}}, driver{"late", func(ctx context.Context, c hal.Config) (hal.Device, error) {
		close(opening)
		<-ctx.Done()
		a := <-agent
		for closing := false; !closing; time.Sleep(time.Millisecond) {
			a.devices.mu.Lock()
			closing = a.devices.opened == nil
			a.devices.mu.Unlock()
		}
		return closes{virtualDevice(t, c.ID, ""), closed}, nil
	}})
	agent <- a
	<-opening
	stop()
	select {
	case <-closed:
	case <-time.After(10 * time.Second):
		t.Error("the device is still open")
	}
}

// closes tells when it is closed.
type closes struct {
	hal.Device
	closed chan struct{}
}

func (d closes) Close() error { defer close(d.closed); return d.Device.Close() }

// TestCheckHealth holds that the outcome of a check has codes and no words of
// the driver, and that it goes out as a record.
func TestCheckHealth(t *testing.T) {
	p := &printer{Device: virtualDevice(t, "front", "POSPrinter"), parts: []hal.Device{virtualDevice(t, "drawer", "")}}
	a, _ := counter(t, time.Minute, []DeviceConfig{{ID: "front", Driver: "fake"}}, driver{"fake", func(context.Context, hal.Config) (hal.Device, error) { return p, nil }})
	eventually(t, "open", func() bool { return a.seen("drawer").Health == "OK" })
	out, err := a.checkHealth(t.Context(), map[string]string{"peripheral": "front"})
	if err != nil || !strings.HasPrefix(string(out), "status ok 9000 ") {
		t.Errorf("internal: %q, %v", out, err)
	}
	out, err = a.checkHealth(t.Context(), map[string]string{"peripheral": "front", "level": "external"})
	if err == nil || err.Error() != "external check of front failed: page REC_EMPTY, check E_OFFLINE" || strings.Contains(string(out), "secret") {
		t.Errorf("external: %q, %v", out, err)
	}
	for _, args := range []map[string]string{{"peripheral": "front", "level": "loud"}, {"peripheral": "back"}, {}} {
		if out, err := a.checkHealth(t.Context(), args); err == nil {
			t.Errorf("%v: %q, want an error", args, out)
		}
	}
	if out, err = a.checkHealth(t.Context(), map[string]string{"peripheral": "drawer"}); err != nil {
		t.Errorf("a part: %q, %v", out, err)
	}
	checks := 0
	eventually(t, "told", func() bool {
		checks = 0
		err := a.spool.Next(t.Context(), 0, 100, nil, func(_ uint64, channel string, payload []byte) {
			if channel == string(wire.Event) {
				b, err := wire.Decode[wire.EventBatch](payload)
				if err != nil {
					t.Error(err)
				}
				checks += len(b.Checks)
			}
		})
		return err == nil && checks == 3
	})
	if all := a.devices.all(); len(all) != 2 || all[0].Info().ID != "drawer" {
		t.Errorf("devices %v", all)
	}
}

// TestPrintSocket holds that a job goes through the agent's socket to the
// printer, and that who comes before the printer is open waits for it.
func TestPrintSocket(t *testing.T) {
	release := make(chan struct{})
	p := &printer{Device: virtualDevice(t, "front", "POSPrinter")}
	dir := t.TempDir()
	at := filepath.Join(dir, "p", "s")
	free, err := net.Listen("tcp", "127.7.9.101:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = free.Close()
	a, stop := counter(t, time.Minute, []DeviceConfig{{ID: "front", Driver: "fake", Claim: "own", Print: "tcp:" + free.Addr().String(), PrintProof: "unix:" + at}},
		driver{"fake", func(context.Context, hal.Config) (hal.Device, error) { <-release; return p, nil }})
	var c net.Conn
	eventually(t, "listening", func() (ok bool) {
		c, err = net.Dial("unix", at)
		return err == nil
	})
	defer c.Close()
	if _, err := io.WriteString(c, "a receipt"); err != nil {
		t.Fatal(err)
	}
	if err := c.(*net.UnixConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	close(release)
	b, err := io.ReadAll(c)
	if err != nil || string(b) != `{"printed":true,"confirmed":true,"bytes":9,"cuts":0}`+"\n" || p.has() != "a receipt" {
		t.Errorf("answer %s, %v; on paper %q", b, err, p.has())
	}
	var raw net.Conn
	eventually(t, "listening on TCP", func() (ok bool) { // the two sockets come one after the other
		raw, err = net.Dial("tcp", free.Addr().String())
		return err == nil
	})
	_, _ = io.WriteString(raw, ", another one that is long enough")
	_ = raw.Close()
	eventually(t, "printed", func() bool { return strings.HasSuffix(p.has(), "long enough") })
	eventually(t, "counted", func() bool {
		s := a.devices.counts("front")
		return len(s) == 3 && s[0].Name == "M_PrintJobCount" && s[0].Value == 2
	})
	stop()
}
