package main

import (
	"context"
	"crypto/ed25519"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/tillward/tillward/cloud/internal/account"
	"github.com/tillward/tillward/cloud/internal/api"
	"github.com/tillward/tillward/cloud/internal/archive/shelf"
	"github.com/tillward/tillward/cloud/internal/catalog"
	"github.com/tillward/tillward/cloud/internal/dispatch"
	"github.com/tillward/tillward/cloud/internal/export"
	"github.com/tillward/tillward/cloud/internal/figures"
	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/live"
	"github.com/tillward/tillward/cloud/internal/owner"
	fleetrollout "github.com/tillward/tillward/cloud/internal/rollout"
	"github.com/tillward/tillward/cloud/internal/store"
	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/provisioning/trust"
)

func TestMain(m *testing.M) { testscript.Main(m, map[string]func(){"tillward": main}) }

// TestScripts runs the sessions in testdata, each against a service of its own:
// the API over a real store with devices d1, d2 (canary) and d3, none online.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata", Setup: setup,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"grab": grab, "release": addRelease, "end": end, "exits": exits, "tamper": tamper,
			"manifest": addManifest, "order": addOrder, "label": label, "buyer": buyer, "asks": addWaiting, "firmware": addFirmware, "online": online, "hold": addHold,
			"counter": addCounter, "lost": lost, "swap": swapText,
		},
	})
}

type storeKey struct{}

// published is the catalog as the service wires it.
type published struct {
	*catalog.Catalog
	signer *trust.OrderSigner
}

func (p published) Export(ctx context.Context, m fleet.Medium) (time.Time, func(io.Writer) error, error) {
	return p.Catalog.Export(ctx, m, func(kind string, m wire.Message) ([]byte, error) { return dispatch.Order(p.signer, kind, m) })
}

// unplugged reaches no device.
type unplugged struct{}

func (unplugged) Send(fleet.DeviceID, wire.Channel, []byte) error { return errors.New("not connected") }
func (unplugged) Connected() map[fleet.DeviceID]fleet.Trust       { return nil }

func setup(env *testscript.Env) error {
	env.Setenv("GORACE", "atexit_sleep_ms=10") // the race detector would keep each program for a second
	ctx, quiet, dir := context.Background(), slog.New(slog.DiscardHandler), filepath.Join(env.WorkDir, ".service")
	st, err := store.Open(ctx, dir, quiet)
	if err != nil {
		return err
	}
	for i, group := range []string{"canary", "canary", "rest"} {
		id := "d" + string(rune('1'+i))
		err := st.Enrol(ctx, fleet.Device{ID: fleet.DeviceID(id), Tenant: "main", Tier: fleet.TierC, Serial: "S-" + id, Site: "berlin", Group: group, EKHash: id, EnrolledAt: time.Now()})
		if err != nil {
			return err
		}
	}
	accounts := account.New(st)
	for _, name := range []string{"viewer", "operator", "admin", "anna"} {
		role := fleet.Role(name)
		if name == "anna" {
			role = fleet.Operator
		}
		plain, _, err := accounts.Issue(ctx, "main", name, role, 0, "test")
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(env.WorkDir, name+".token"), []byte(plain+"\n"), 0o600); err != nil {
			return err
		}
	}
	cat, err := catalog.Open(filepath.Join(dir, "artifacts"))
	if err != nil {
		return err
	}
	cat.Key, err = trust.NewKey(filepath.Join(dir, "online.key"))
	if err != nil {
		return err
	}
	key, err := trust.NewKey(filepath.Join(dir, "order.key"))
	if err != nil {
		return err
	}
	d := dispatch.New(dispatch.Options{Store: st, Signer: trust.NewOrderSigner(key), Sender: unplugged{}, Changed: func(fleet.Command) {}, Log: quiet})
	hub := &live.Hub{}
	owners := owner.New(owner.Options{
		Store: st, Tenant: "main", Name: "Main GmbH", Key: keyOf('m'), Vendors: []owner.Vendor{{Name: "Vend", Key: publicOf('v')}}, Waiting: true,
		Relinquish: d.Relinquish, Cut: func(fleet.DeviceID, string) {}, Changed: func(fleet.DeviceID) {}, Log: quiet,
	})
	exports, err := export.New(export.Options{Store: st, Tenant: "main", Version: "1", Log: quiet, Sinks: []export.Sink{
		{Name: "siem", Kind: export.KindFile, Format: export.FormatCEF, Since: "start", Path: filepath.Join(env.WorkDir, "trail.cef")},
		{Name: "nowhere", Kind: export.KindFile, Format: export.FormatCEF, Since: "start", Path: filepath.Join(env.WorkDir, "no", "such", "folder")},
	}})
	if err != nil {
		return err
	}
	_, fourEyes := os.Stat(filepath.Join(env.WorkDir, "four-eyes")) // a session with this file is at a service that asks for them
	srv := httptest.NewUnstartedServer(api.New(api.Deps{
		Trails: shelf.New(shelf.Options{Store: st, Signer: trust.NewOrderSigner(key), Dir: filepath.Join(dir, "archive"), Tenant: "main", Log: quiet}),
		Owners: owners, Exports: exports, Challenge: func(fleet.DeviceID) error { return nil }, Reappraise: func(string) {}, Disconnect: func(fleet.DeviceID, string) {},
		Authorities: func() []fleet.Authority {
			return []fleet.Authority{{Serial: "0a", NotAfter: time.Now().Add(time.Hour), Current: true}, {Serial: "09"}}
		},
		Rotate:  func(context.Context) error { return nil },
		Preview: fleetrollout.New(fleetrollout.Options{Store: st, Link: unplugged{}, Log: quiet}).Preview, Check: fleetrollout.Check,
		Hours: func(text string) error {
			_, err := fleetrollout.ParseHours(text)
			return err
		},
		FourEyes: fourEyes == nil, Figures: counted(st), Health: func(context.Context) ([]fleet.PartHealth, error) {
			state := fleet.PartDegraded
			if _, err := os.Stat(filepath.Join(env.WorkDir, "store-fails")); err == nil {
				state = fleet.PartFailing
			}
			return []fleet.PartHealth{{Part: "broker", State: fleet.PartOK, Since: time.Now(), What: "3 devices"}, {Part: "store", State: state, Since: time.Now(), What: "the disk is slow", Todo: "make room"}}, nil
		},
		Why: func(context.Context, fleet.TenantID, fleet.DeviceID) ([]fleet.Delay, error) {
			return []fleet.Delay{{Rollout: "ro_x", Reason: "window", Text: "it waits for the hours in which it may fetch", Since: time.Now()}}, nil
		},
		Tenant: "main", Store: st, Accounts: accounts, Send: d.Send, Releases: published{cat, trust.NewOrderSigner(key)}, Watch: hub.Subscribe, Changed: hub.Publish, Wake: func() {}, Version: "1", Log: quiet,
	}))
	srv.Config.ErrorLog = slog.NewLogLogger(quiet.Handler(), slog.LevelError)
	srv.StartTLS()
	env.Defer(func() {
		srv.Close()
		_ = st.Close()
	})
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	if err := os.WriteFile(filepath.Join(env.WorkDir, "roots.pem"), ca, 0o600); err != nil {
		return err
	}
	env.Values[storeKey{}] = st
	env.Setenv("TILLWARD_SERVER", srv.URL)
	env.Setenv("SERVER", srv.URL)
	env.Setenv("TILLWARD_TOKEN_FILE", filepath.Join(env.WorkDir, "admin.token"))
	env.Setenv("TILLWARD_CA", filepath.Join(env.WorkDir, "roots.pem"))
	return nil
}

// counted holds the figures of a service that answered a little.
func counted(st *store.Store) *figures.Book {
	b := figures.New(figures.Options{Store: st})
	for i := range 40 {
		b.Op("api", "GET /v1/devices").Done(figures.OK, time.Duration(i)*time.Millisecond, 1000)
		b.Op("mqtt-up", "telemetry").Done(figures.OK, 5*time.Millisecond, 200)
	}
	b.Op("api", "POST /v1/commands").Done(figures.Failed, 2*time.Second, 0)
	return b
}

// grab VAR REGEXP sets a variable to the first group in the last output.
func grab(ts *testscript.TestScript, neg bool, args []string) {
	m := regexp.MustCompile(args[1]).FindStringSubmatch(ts.ReadFile("stdout"))
	if neg || m == nil {
		ts.Fatalf("no %s in the output", args[1])
	}
	ts.Setenv(args[0], m[1])
}

// exits CODE ARGS... runs tillward and wants that exit code.
func exits(ts *testscript.TestScript, _ bool, args []string) {
	code := 0
	if err := ts.Exec("tillward", args[1:]...); err != nil {
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			ts.Fatalf("%v", err)
		}
		code = exit.ExitCode()
	}
	if args[0] != strconv.Itoa(code) {
		ts.Fatalf("exit code %d, want %s", code, args[0])
	}
}

// addRelease DIR VERSION adds a release to the repository in DIR, which it makes when it is not there.
func addRelease(ts *testscript.TestScript, _ bool, args []string) {
	dir, keyDir := ts.MkAbs(args[0]), ts.MkAbs(args[0]+"-keys")
	keys, repo := trust.Keys{}, &trust.Repository{Dir: dir}
	for _, role := range []string{trust.RoleRoot, trust.RoleTargets, trust.RoleSnapshot, trust.RoleTimestamp} {
		ts.Check(os.MkdirAll(keyDir, 0o700))
		path := filepath.Join(keyDir, role+".pem")
		k, err := trust.ReadKey(path)
		if errors.Is(err, os.ErrNotExist) {
			k, err = trust.NewKey(path)
		}
		ts.Check(err)
		keys[role] = []ed25519.PrivateKey{k}
	}
	if _, err := os.Stat(dir); err != nil {
		_, err := trust.InitRepository(dir, keys, nil)
		ts.Check(err)
	}
	bin := filepath.Join(keyDir, "agent")
	ts.Check(os.WriteFile(bin, []byte("agent "+args[1]), 0o600))
	ts.Check(repo.Add([]trust.NewTarget{{
		Path: "agent/" + args[1] + "/tillward-agent-linux-amd64", File: bin, Custom: trust.Custom{Class: "agent", Version: args[1], OS: "linux", Arch: "amd64"},
	}}, keys))
}

// end ROLLOUT lets every device of a rollout succeed and the rollout end.
func end(ts *testscript.TestScript, _ bool, args []string) {
	st, id, ctx := ts.Value(storeKey{}).(*store.Store), fleet.RolloutID(args[0]), context.Background()
	_, err := st.Enlist(ctx, id)
	ts.Check(err)
	units, _, err := st.Units(ctx, id, 0)
	ts.Check(err)
	for _, e := range units {
		_, err := st.MoveExecution(ctx, fleet.ExecutionStep{ID: e.ID, State: fleet.ExecSucceeded, From: "0.1.0", To: "1.0.0"}, time.Now())
		ts.Check(err)
	}
	r, err := st.Rollout(ctx, "main", id)
	ts.Check(err)
	r.State = fleet.RolloutCompleted
	_, err = st.SaveRollout(ctx, r, fleet.AuditEvent{Kind: "rollout.completed"})
	ts.Check(err)
}

// addHold ROLLOUT SITE keeps a site out of a rollout.
func addHold(ts *testscript.TestScript, _ bool, args []string) {
	st, ctx := ts.Value(storeKey{}).(*store.Store), context.Background()
	r, err := st.Rollout(ctx, "main", fleet.RolloutID(args[0]))
	ts.Check(err)
	r.Holds = append(r.Holds, fleet.Hold{Site: args[1], Reason: "2 ended badly", Since: time.Now()})
	_, err = st.SaveRollout(ctx, r, fleet.AuditEvent{Kind: "rollout.held"})
	ts.Check(err)
}

// tamper flips a byte in the file that matches a pattern.
func tamper(ts *testscript.TestScript, _ bool, args []string) {
	names, err := filepath.Glob(ts.MkAbs(args[0]))
	if err != nil || len(names) != 1 {
		ts.Fatalf("%s: %v, %v, want one file", args[0], names, err)
	}
	b, err := os.ReadFile(names[0])
	ts.Check(err)
	b[len(b)/2] ^= 1
	ts.Check(os.WriteFile(names[0], b, 0o600))
}

// swap FILE OLD NEW changes text in a file.
func swapText(ts *testscript.TestScript, _ bool, args []string) {
	text := ts.ReadFile(args[0])
	if !strings.Contains(text, args[1]) {
		ts.Fatalf("no %q in %s", args[1], args[0])
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(strings.ReplaceAll(text, args[1], args[2])), 0o600))
}

// addCounter DEVICE connects a device that has an open printer, a drawer and a reader that reads badly.
func addCounter(ts *testscript.TestScript, _ bool, args []string) {
	st, id, ctx, now := ts.Value(storeKey{}).(*store.Store), fleet.DeviceID(args[0]), context.Background(), time.Now()
	said := fleet.Light{Health: "OK", Since: now.Add(-3 * time.Hour)}
	boot := [16]byte{1}
	_, err := st.Commit(ctx, []fleet.Intake{
		{Device: id, Tenant: "main", At: now, Report: &fleet.Report{Boot: boot, Seq: 1, Sent: now, Peripherals: []fleet.Peripheral{
			{
				ID: "receipt", Category: "POSPrinter", Driver: "escpos", Maker: "Maker", Model: "P1", Serial: "P-7", Claim: "own", Key: "usb:04b8:0e15:P-7", Interface: "USB", Power: "PS_ONLINE",
				Sensors: map[string]string{"CoverOpen": "Yes", "RecEmpty": "No"}, Said: fleet.Light{Health: "Fault", Reason: "COVER_OPEN", Since: now.Add(-2 * time.Hour)},
			},
			{ID: "drawer", Category: "CashDrawer", Power: "PS_ONLINE", Sensors: map[string]string{"DrawerOpened": "No"}, Said: said},
			{ID: "reader", Category: "SmartCardRW", Power: "PS_ONLINE", Sensors: map[string]string{"SCPresentSensor": "No"}, Said: said},
		}}},
		{Device: id, Tenant: "main", At: now, Samples: []fleet.Sample{
			{Boot: boot, Seq: 2, At: now, Peripheral: "receipt", Name: "ReceiptLineFeedCount", Value: 12345},
			{Boot: boot, Seq: 2, Index: 1, At: now, Peripheral: "receipt", Name: "M_PaperEmptyCount", Value: 2},
		}},
		{Device: id, Tenant: "main", At: now, Checks: []fleet.HealthCheck{
			{Boot: boot, Seq: 3, At: now, Peripheral: "receipt", Level: "external", Steps: []fleet.CheckStep{{ID: "reachable", OK: true, MS: 12}, {ID: "page", Code: "COVER_OPEN", MS: 900}}},
		}},
	})
	ts.Check(err)
	_, err = st.Derive(ctx, []fleet.Derived{{Device: id, Tenant: "main", Body: []byte("{}"), Peripherals: []fleet.DerivedPeripheral{
		{ID: "receipt", Paper: &fleet.Paper{
			RunOutAt: now.Add(2 * time.Hour), Earliest: now.Add(time.Hour), Latest: now.Add(3 * time.Hour), Confidence: 0.8, LinesLeft: 500, LinesPerHour: 250, Basis: "learned",
		}},
		{ID: "reader", Reads: &fleet.Reads{Reads: 100, Failures: 10, Rate: 0.1, FleetRate: 0.01, Worse: true}},
	}}}, now)
	ts.Check(err)
	ts.Check(st.SetPresence(ctx, id, true, now))
}

// lost DEVICE ends the connection of a device.
func lost(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(ts.Value(storeKey{}).(*store.Store).SetPresence(context.Background(), fleet.DeviceID(args[0]), false, time.Now()))
}
