package simulator_test

import (
	"context"
	"crypto"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	_ "github.com/mattn/go-sqlite3" // to look into a till's spool
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/tillward/tillward/provisioning/trust"
	"github.com/tillward/tillward/simulator"
	"github.com/tillward/tillward/simulator/emulator"
)

// TestScenarios plays testdata/*.txtar. Their words:
//
//	fleet N [hasty] [claimed]          a service and N boxes that are not switched on; hasty ones measure ten times a second,
//	                                   claimed ones join only when somebody claims them
//	till VERB N...                     boot, stop, kill (-9), power (off and on), lose its books, reset (all of its disk), cut or heal its network, or act: till act N WHAT
//	measure N [EVENT=IMAGE...]         what its firmware measures when it is powered next; without events, what it measured first
//	image N bare                       its image names no service
//	stick N KEY=VALUE...               a file on a stick names one
//	ship N...                          list it in its vendor's manifest; its label is @label/N, a file, and @code/N
//	clone N M                          copy the disk of till N, which is off, to box M
//	service restart
//	release add VERSION                sign the next agent as VERSION and publish it
//	release for VERSION N              the same, with reference values that know how till N boots now
//	release flip VERSION               flip a byte of it on the service's disk
//	release dead VERSION               an agent that passes its self-check and then does not live
//	release expire                     sign a timestamp there that has run out
//	rollout VERSION [ARG...]           to every till; ends an open one
//	issuer DURATION                    sign an issuing certificate of devices that ends after it; ca rotate takes it
//	command NAME N VERB [ARG...] [in=SECONDS]   send a command; NAME is ours
//	waive N DURATION                   let it in for so long whatever it boots
//	[!] operator ARG...                the command line of the service
//	[!] provision ARG...               that of the files
//	mark N KEY...                      remember fields of the device, for changed
//	until WHAT, [!] expect WHAT        wait for it, or look once
//	within DURATION WHAT               wait no longer than that
//	prove N KEY=VALUE...               a copy of its trail, checked where no service is: fields of the report
//	whole N...                         stop the tills: all they recorded is stored, once, in order
//
// and WHAT is one of
//
//	till N KEY=VALUE...                fields of the device; > instead of = compares numbers
//	audit N KIND [KEY=VALUE...]        an event in its trail; with count>M, more than M of them
//	alarm KIND                         an event in the service's trail
//	peripheral N ID KEY=VALUE...       fields or sensors
//	series N PERIPHERAL NAME           it is measured
//	update N STATE [REASON]            its part of the last rollout
//	command NAME STATE
//	queue N CHANNEL>M                  what waits in its spool
//	more N                             samples arrive that were not there when first asked
//	apart N M                          two devices
//	printed N                          a job, by its printer
//	finding N CHECK [KEY=VALUE...]     of its last appraisal
//	attestation N KEY=VALUE...         one of its appraisals
//	firmware N EVENT [KEY=VALUE...]    the event it measures, in the queue of those that wait for a decision
//	waiting N [KEY=VALUE...]           for somebody to claim it
//	issuers COUNT                      of device certificates that are believed
//	ended N                            the last certificate it was given
//	changed N KEY                      since it was marked
//	readable N TEXT                    in a file below its state folder that is no agent
//	says N TEXT                        in its log
//
// In arguments @N is the id of a device, @N/EVENT the digest of what it
// measures, @issuer/N the serial number of an issuing certificate, the oldest
// being the first, @service the data folder, @web/N where a till reaches the
// service, and @stranger another service that nobody here knows.
func TestScenarios(t *testing.T) {
	if _, err := binaries(); err != nil {
		t.Fatal(err)
	}
	verbs := map[string]func(s *scenario, args []string) error{
		"fleet": (*scenario).fleet, "till": (*scenario).till, "clone": (*scenario).clone, "service": (*scenario).service,
		"release": (*scenario).release, "rollout": (*scenario).rollout, "command": (*scenario).command, "whole": (*scenario).whole,
		"until": (*scenario).until, "within": (*scenario).within, "measure": (*scenario).measure, "image": (*scenario).image, "stick": (*scenario).stick,
		"ship": (*scenario).ship, "waive": (*scenario).waive, "mark": (*scenario).mark,
		"issuer": (*scenario).issuer, "prove": (*scenario).prove,
	}
	tools := map[string]func(w *simulator.World, ctx context.Context, args ...string) error{
		"operator": (*simulator.World).CLI, "provision": (*simulator.World).Provision,
	}
	cmds := map[string]func(*testscript.TestScript, bool, []string){
		"expect": func(ts *testscript.TestScript, neg bool, args []string) {
			s := ts.Value(scenarioKey{}).(*scenario)
			ok, got, err := s.is(s.ctx, args)
			ts.Check(err)
			if ok == neg {
				ts.Fatalf("got %s", got)
			}
		},
	}
	for word, do := range verbs {
		cmds[word] = func(ts *testscript.TestScript, neg bool, args []string) {
			if neg {
				ts.Fatalf("%s has no opposite", word)
			}
			s := ts.Value(scenarioKey{}).(*scenario)
			args, err := s.meant(s.ctx, args)
			if err == nil {
				err = do(s, args)
			}
			if err != nil {
				tell(scriptLog{ts}, s.dir)
				ts.Fatalf("%v", err)
			}
		}
	}
	for word, run := range tools {
		cmds[word] = func(ts *testscript.TestScript, neg bool, args []string) {
			s := ts.Value(scenarioKey{}).(*scenario)
			args, err := s.meant(s.ctx, args)
			ts.Check(err)
			switch err := run(s.world, s.ctx, args...); {
			case err == nil && neg:
				ts.Fatalf("%s %s was done", word, strings.Join(args, " "))
			case err != nil && !neg:
				ts.Fatalf("%v", err)
			}
		}
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata", WorkdirRoot: t.TempDir(), Cmds: cmds, RequireExplicitExec: true, RequireUniqueNames: true,
		Setup: func(env *testscript.Env) error {
			ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
			s := &scenario{ctx: ctx, dir: filepath.Join(env.WorkDir, "w"), commands: make(map[string]string), seen: make(map[string]float64), marks: make(map[string]string)}
			env.Values[scenarioKey{}] = s
			env.Defer(func() {
				if s.world != nil {
					s.world.Close()
				}
				if s.stranger != nil {
					s.stranger.Close()
				}
				cancel()
			})
			return nil
		},
	})
}

type scenarioKey struct{}

type scriptLog struct{ ts *testscript.TestScript }

func (l scriptLog) Log(args ...any) { l.ts.Logf("%s", fmt.Sprint(args...)) }

// scenario is one script at play.
type scenario struct {
	ctx      context.Context // ends with the script: commands of testscript have none
	dir      string
	world    *simulator.World
	next     string
	rollID   string
	commands map[string]string // our name -> id
	seen     map[string]float64
	marks    map[string]string // "N KEY" -> value
	stranger *httptest.Server
}

func (s *scenario) fleet(args []string) error {
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	pace := simulator.DeskPace
	if slices.Contains(args[1:], "hasty") {
		pace = simulator.Pace{Poll: "100ms", Stats: "100ms", Batch: "100ms", Heartbeat: "1s"}
	}
	opt, err := desk(s.dir, n, pace)
	if err != nil {
		return err
	}
	s.next, opt.ByClaim = opt.Next, slices.Contains(args[1:], "claimed")
	s.world, err = simulator.Open(s.ctx, opt)
	return err
}

// box is till n, counted from one.
func (s *scenario) box(n string) (*simulator.Till, error) {
	i, err := strconv.Atoi(n)
	if err != nil || s.world == nil || i < 1 || i > len(s.world.Tills) {
		return nil, fmt.Errorf("no till %s", n)
	}
	return s.world.Tills[i-1], nil
}

var acts = map[string]emulator.Act{
	"open-cover": emulator.OpenCover, "close-cover": emulator.CloseCover, "pull-plug": emulator.PullPlug, "put-plug": emulator.PutPlug,
	"insert-card": emulator.InsertCard, "remove-card": emulator.RemoveCard,
}

func (s *scenario) till(args []string) error {
	for i, n := range args[1:] {
		t, err := s.box(n)
		if err != nil {
			return err
		}
		switch args[0] {
		case "boot":
			t.Boot(s.ctx)
		case "stop":
			t.Stop()
		case "kill":
			if err := t.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
				return err
			}
		case "power":
			if err := t.Power(s.ctx); err != nil {
				return err
			}
		case "lose": // it is off
			books, err := filepath.Glob(filepath.Join(s.dir, "till-"+n, "state", "spool.db*"))
			if err != nil || len(books) == 0 {
				return fmt.Errorf("till %s has no books: %w", n, err)
			}
			for _, b := range books {
				if err := os.Remove(b); err != nil {
					return err
				}
			}
		case "reset": // it is off
			if err := os.RemoveAll(filepath.Join(s.dir, "till-"+n, "state")); err != nil {
				return err
			}
		case "cut":
			t.CutNetwork()
		case "heal":
			t.HealNetwork()
		case "act":
			for _, what := range args[i+2:] {
				if acts[what] == "" {
					return fmt.Errorf("nothing called %s happens at a till", what)
				}
				if err := t.Act(s.ctx, acts[what]); err != nil {
					return err
				}
			}
			return nil
		default:
			return fmt.Errorf("till %s: no such verb", args[0])
		}
	}
	return nil
}

func (s *scenario) clone(args []string) error {
	from, to := filepath.Join(s.dir, "till-"+args[0], "state"), filepath.Join(s.dir, "till-"+args[1], "state")
	if err := os.RemoveAll(to); err != nil {
		return err
	}
	return os.CopyFS(to, os.DirFS(from))
}

func (s *scenario) service(args []string) error {
	if args[0] != "restart" {
		return fmt.Errorf("service %s: no such verb", args[0])
	}
	return s.world.RestartService(s.ctx)
}

func (s *scenario) release(args []string) error {
	published := filepath.Join(s.dir, "service", "artifacts")
	switch args[0] {
	case "add":
		return s.world.Release(s.ctx, args[1], s.next)
	case "for":
		t, err := s.box(args[2])
		if err != nil {
			return err
		}
		return s.world.ReleaseFor(s.ctx, args[1], s.next, t)
	case "dead":
		file := filepath.Join(s.dir, "dead-agent")
		if err := os.WriteFile(file, []byte("#!/bin/sh\n[ \"$1\" = -selfcheck ]\n"), 0o600); err != nil {
			return err
		}
		return s.world.Release(s.ctx, args[1], file)
	case "flip":
		names, err := filepath.Glob(filepath.Join(published, "targets", "agent", args[1], "*"))
		if err != nil || len(names) != 1 {
			return fmt.Errorf("got targets %q of %s, want one: %w", names, args[1], err)
		}
		b, err := os.ReadFile(names[0])
		if err != nil {
			return err
		}
		b[len(b)/2] ^= 1
		return os.WriteFile(names[0], b, 0o600)
	case "expire":
		file := filepath.Join(published, "metadata", "timestamp.json")
		m, err := metadata.Timestamp().FromFile(file)
		if err != nil {
			return err
		}
		keys, err := trust.ReadKeys(filepath.Join(s.dir, "release", "keys"))
		if err != nil {
			return err
		}
		m.Signed.Expires = time.Now().Add(-time.Minute).UTC()
		m.ClearSignatures()
		for _, k := range keys[trust.RoleTimestamp] {
			signer, err := signature.LoadSigner(k, crypto.Hash(0))
			if err != nil {
				return err
			}
			if _, err := m.Sign(signer); err != nil {
				return err
			}
		}
		return m.ToFile(file, true)
	}
	return fmt.Errorf("release %s: no such verb", args[0])
}

func (s *scenario) rollout(args []string) (err error) {
	s.rollID, err = s.world.Rollout(s.ctx, "agent/"+args[0], args[1:]...)
	return err
}

func (s *scenario) command(args []string) error {
	d, err := s.device(s.ctx, args[1])
	if err != nil {
		return err
	}
	in := map[string]any{"device": d["id"], "verb": args[2], "reason": "scenario"}
	with := make(map[string]string)
	for _, a := range args[3:] {
		k, v, _ := strings.Cut(a, "=")
		if k == "in" {
			if in["expires_in_s"], err = strconv.Atoi(v); err != nil {
				return err
			}
			continue
		}
		with[k] = v
	}
	in["args"] = with
	var sent struct{ Items []struct{ ID string } }
	if err := s.world.Operator.Post(s.ctx, "/v1/commands", in, &sent); err != nil {
		return err
	}
	s.commands[args[0]] = sent.Items[0].ID
	return nil
}

func (s *scenario) whole(args []string) error {
	for _, n := range args {
		t, err := s.box(n)
		if err != nil {
			return err
		}
		t.Stop()
		a, err := s.world.Account(s.ctx, t)
		if err != nil {
			return err
		}
		if a.Samples == 0 || a.Samples != a.Recorded {
			return fmt.Errorf("%s: %d samples recorded, %d stored", t.Name, a.Recorded, a.Samples)
		}
		if a.Audit.Recorded == 0 || a.Audit.Recorded != a.Audit.Stored || !a.Audit.ChainOK {
			return fmt.Errorf("%s: %d audit events recorded, %d stored, chain ok: %v", t.Name, a.Audit.Recorded, a.Audit.Stored, a.Audit.ChainOK)
		}
		trail, err := s.trail(s.ctx, "/v1/devices/"+a.DeviceID+"/audit")
		if err != nil {
			return err
		}
		for i, e := range trail {
			if e.Seq != uint64(i+1) {
				return fmt.Errorf("%s: audit event %d at place %d", t.Name, e.Seq, i+1)
			}
		}
		if len(trail) != int(a.Audit.Stored) {
			return fmt.Errorf("%s: %d audit events listed, %d stored", t.Name, len(trail), a.Audit.Stored)
		}
	}
	return nil
}

// until asks until it is so; when it never is, the error says what was last.
func (s *scenario) until(args []string) error { return s.within(append([]string{"90s"}, args...)) }

// within is until, for so long.
func (s *scenario) within(args []string) error {
	limit, err := time.ParseDuration(args[0])
	if err != nil {
		return err
	}
	args = args[1:]
	got := "nothing"
	ctx, cancel := context.WithTimeout(s.ctx, limit)
	defer cancel()
	err = s.world.Until(ctx, strings.Join(args, " "), func(ctx context.Context) (ok bool, err error) {
		var now string
		if ok, now, err = s.is(ctx, args); now != "" {
			got = now
		}
		return ok, err
	})
	if err != nil {
		return fmt.Errorf("%w; got %s", err, got)
	}
	return nil
}

// is says whether WHAT is so now, and what is instead.
func (s *scenario) is(ctx context.Context, what []string) (ok bool, got string, err error) {
	what, err = s.meant(ctx, what)
	if errors.Is(err, errNobody) {
		return false, err.Error(), nil
	}
	if err != nil {
		return false, "", err
	}
	subject, args := what[0], what[1:]
	if look := looks[subject]; look != nil {
		return look(s, ctx, args)
	}
	switch subject {
	case "till":
		d, err := s.device(ctx, args[0])
		return d != nil && match(d, args[1:]), text(d), err
	case "audit", "alarm":
		path, rest := "/v1/audit", args
		if subject == "audit" {
			d, err := s.device(ctx, args[0])
			if d == nil || err != nil {
				return false, "no such device", err
			}
			path, rest = fmt.Sprintf("/v1/devices/%s/audit", d["id"]), args[1:]
		}
		trail, err := s.trail(ctx, path)
		return s.happened(trail, rest[0], rest[1:]), text(trail), err
	case "peripheral":
		d, err := s.device(ctx, args[0])
		list, _ := d["peripherals"].([]any)
		for _, p := range list {
			fields := p.(map[string]any)
			if sensors, _ := fields["sensors"].(map[string]any); fields["id"] == args[1] {
				maps.Copy(fields, sensors)
				return match(fields, args[2:]), text(fields), err
			}
		}
		return false, text(d), err
	case "series":
		d, err := s.device(ctx, args[0])
		if d == nil || err != nil {
			return false, "no such device", err
		}
		var all struct {
			Items []struct {
				Peripheral, Name string
				Count            uint64
			}
		}
		err = s.world.Operator.Get(ctx, fmt.Sprintf("/v1/devices/%s/series", d["id"]), &all)
		for _, i := range all.Items {
			if i.Peripheral == args[1] && i.Name == args[2] && i.Count > 0 {
				return true, text(i), err
			}
		}
		return false, text(all), err
	case "update":
		d, err := s.device(ctx, args[0])
		if err != nil {
			return false, "", err
		}
		var all struct {
			Items []struct{ Device, State, Reason, Text string }
		}
		err = s.world.Operator.Get(ctx, "/v1/rollouts/"+s.rollID+"/executions", &all)
		for _, e := range all.Items {
			if e.Device == d["id"] && e.State == args[1] && (len(args) < 3 || e.Reason == args[2]) {
				return true, text(e), err
			}
		}
		return false, text(all), err
	case "command":
		var c struct{ State, Code, Text, Output string }
		err := s.world.Operator.Get(ctx, "/v1/commands/"+s.commands[args[0]], &c)
		return c.State == args[1], text(c), err
	case "queue":
		channel, least, _ := strings.Cut(args[1], ">")
		n, err := queued(ctx, filepath.Join(s.dir, "till-"+args[0], "state", "spool.db"), channel)
		m, _ := strconv.Atoi(least)
		return n > m, strconv.Itoa(n), err
	case "more":
		d, err := s.device(ctx, args[0])
		if d == nil || err != nil {
			return false, "no such device", err
		}
		n, _ := d["samples"].(float64)
		first, asked := s.seen[args[0]]
		if !asked {
			s.seen[args[0]] = n
			return false, text(n), nil
		}
		if n > first {
			delete(s.seen, args[0])
			return true, "", nil
		}
		return false, text(n), nil
	case "apart":
		a, err := s.device(ctx, args[0])
		if err != nil {
			return false, "", err
		}
		b, err := s.device(ctx, args[1])
		return a["id"] != b["id"] && a["ek_sha256"] != b["ek_sha256"], text([]any{a, b}), err
	case "printed":
		t, err := s.box(args[0])
		if err != nil {
			return false, "", err
		}
		return len(t.Printed()) > 0, text(t.Printed()), nil
	}
	return false, "", fmt.Errorf("%s: no such thing to look at", subject)
}

// device is what the service knows of till n; nil when it is unknown.
func (s *scenario) device(ctx context.Context, n string) (map[string]any, error) {
	var fleet struct{ Items []map[string]any }
	if err := s.world.Operator.Get(ctx, "/v1/devices?limit=1000", &fleet); err != nil {
		return nil, err
	}
	for _, d := range fleet.Items {
		if d["serial"] == "till-"+n {
			return d, nil
		}
	}
	return nil, nil
}

type event struct {
	Seq                     uint64
	Kind, Severity, Subject string
	Detail                  map[string]any
}

// trail reads a whole audit trail, oldest first.
func (s *scenario) trail(ctx context.Context, path string) ([]event, error) {
	var out []event
	for after := ""; ; {
		var page struct {
			Items []event
			Next  string
		}
		if err := s.world.Operator.Get(ctx, path+"?order=asc&limit=1000&after="+after, &page); err != nil {
			return nil, err
		}
		out = append(out, page.Items...)
		if after = page.Next; after == "" {
			return out, nil
		}
	}
}

// happened says whether events of that kind are in the trail: one, or as many
// as count> or count= says. A subject that is one of our commands' names means
// that command.
func (s *scenario) happened(trail []event, kind string, with []string) bool {
	n := 0
	for _, e := range trail {
		fields := map[string]any{"severity": e.Severity, "subject": e.Subject}
		for name, id := range s.commands {
			if id == e.Subject {
				fields["subject"] = name
			}
		}
		maps.Copy(fields, e.Detail)
		if e.Kind == kind && match(fields, slices.DeleteFunc(slices.Clone(with), func(c string) bool { return strings.HasPrefix(c, "count") })) {
			n++
		}
	}
	for _, c := range with {
		if strings.HasPrefix(c, "count") {
			return match(map[string]any{"count": n}, []string{c})
		}
	}
	return n > 0
}

// match says whether the fields are as the conditions say.
func match(fields map[string]any, conditions []string) bool {
	for _, c := range conditions {
		if k, v, ok := strings.Cut(c, ">"); ok {
			least, err := strconv.ParseFloat(v, 64)
			n, nerr := strconv.ParseFloat(fmt.Sprint(fields[k]), 64)
			if err != nil || nerr != nil || n <= least {
				return false
			}
			continue
		}
		k, v, _ := strings.Cut(c, "=")
		if got, ok := fields[k]; !ok || fmt.Sprint(got) != v {
			return false
		}
	}
	return true
}

func text(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// queued counts the messages that wait in a spool. Its owner lets nobody else
// in, so a copy is opened, as after a power cut; one that was taken in the
// middle of a checkpoint and makes no sense counts as empty.
func queued(ctx context.Context, path, channel string) (n int, err error) {
	dir, err := os.MkdirTemp(filepath.Dir(path), "look-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	for _, part := range []string{"", "-wal"} {
		b, err := os.ReadFile(path + part)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return 0, err
		}
		if err := os.WriteFile(filepath.Join(dir, "spool.db"+part), b, 0o600); err != nil {
			return 0, err
		}
	}
	db, err := sql.Open("sqlite3", "file:"+filepath.Join(dir, "spool.db"))
	if err != nil {
		return 0, err
	}
	defer db.Close()
	if db.QueryRowContext(ctx, "SELECT count(*) FROM message WHERE channel = ?", "up/"+channel).Scan(&n) != nil {
		return 0, nil
	}
	return n, nil
}
