package export_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/tillward/tillward/cloud/internal/export"
	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/store"
)

// TestMain is also the service that is killed, when it is told to be.
func TestMain(m *testing.M) {
	if dir := os.Getenv("TILLWARD_TEST_EXPORTS"); dir != "" {
		if err := exportsUntilKilled(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// exportsUntilKilled records and exports until its input ends, and says how many
// entries it has recorded for sure.
func exportsUntilKilled(dir string) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	quiet := slog.New(slog.DiscardHandler)
	st, err := store.Open(ctx, dir, quiet)
	if err != nil {
		return err
	}
	file := func(name string, f export.Filter) export.Sink {
		return export.Sink{Name: name, Kind: export.KindFile, Format: export.FormatSyslog, Since: "start", Path: filepath.Join(dir, name), Filter: f}
	}
	syslog := export.Sink{
		Name: "siem", Kind: export.KindSyslog, Format: export.FormatSyslog, Since: "start", Address: os.Getenv("TILLWARD_TEST_ADDR"), CA: os.Getenv("TILLWARD_TEST_CA"),
	}
	x, err := export.New(export.Options{Store: st, Tenant: "main", Log: quiet, Sinks: []export.Sink{syslog, file("file", export.Filter{}), file("alarms", export.Filter{Severity: "alarm"})}})
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- x.Run(ctx) }()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	for i := 0; ctx.Err() == nil; i++ {
		ev := fleet.AuditEvent{Tenant: "main", Kind: "device.changed", Severity: []string{"info", "warn", "alarm"}[i%3], Subject: "till-" + strconv.Itoa(i)}
		if err := st.Audit(ctx, ev); err != nil && ctx.Err() == nil {
			return err
		}
		end, err := st.TrailsEnd(context.WithoutCancel(ctx))
		if err != nil {
			return err
		}
		fmt.Println(end)
	}
	if err := <-done; err != nil {
		return err
	}
	return st.Close()
}

// TestKilled kills the service with SIGKILL in the middle of exports, again and
// again: what it has recorded arrives at every sink, and whatever comes twice
// has its number.
func TestKilled(t *testing.T) {
	const kills = 6
	a, dir := newAuthority(t, "house"), t.TempDir()
	k := newTaker(t, a, func(k *taker, _ int, c net.Conn) { k.take(c, 1<<20) })
	recorded := 0
	for life := range kills + 1 {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), "TILLWARD_TEST_EXPORTS="+dir, "TILLWARD_TEST_ADDR="+k.tcp.Addr().String(), "TILLWARD_TEST_CA="+a.ca())
		cmd.Stderr = os.Stderr
		in, err := cmd.StdinPipe()
		must(t, err)
		out, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		// It is killed after it has recorded some more, wherever its sinks then are.
		goal, lines := recorded+150+97*life, bufio.NewScanner(out)
		for recorded < goal && lines.Scan() {
			if recorded, err = strconv.Atoi(lines.Text()); err != nil {
				t.Fatal(err)
			}
		}
		if life < kills {
			must(t, cmd.Process.Signal(syscall.SIGKILL))
		} else {
			must(t, in.Close())
		}
		for lines.Scan() { // what it said before it was gone counts
			if recorded, err = strconv.Atoi(lines.Text()); err != nil {
				t.Fatal(err)
			}
		}
		err = cmd.Wait()
		if killed := life < kills; killed != (err != nil) {
			t.Fatalf("life %d: got %v", life, err)
		}
	}
	st, err := store.Open(t.Context(), dir, slog.New(slog.DiscardHandler))
	must(t, err)
	b := &books{st, dir}
	defer st.Close()
	end, err := st.TrailsEnd(t.Context())
	must(t, err)
	if int(end) < recorded || recorded < 1500 {
		t.Fatalf("%d entries are there, and %d were recorded", end, recorded)
	}
	sink := k.sink(a)
	files := []export.Sink{fileSink(t, export.Filter{}), fileSink(t, export.Filter{Severity: "alarm"})}
	files[0].Name, files[0].Path = "file", filepath.Join(dir, "file")
	files[1].Name, files[1].Path = "alarms", filepath.Join(dir, "alarms")
	x, stop := exporting(t, b, append(files, sink)...)
	until(t, "everything has arrived", func() bool {
		all, err := x.States(t.Context())
		must(t, err)
		return all[0].Lag == 0 && all[1].Lag < 3 && all[2].Lag == 0
	})
	stop()
	doubles := counted(t, k.got(), int(end))
	t.Logf("%d kills, %d entries: %d came twice by syslog", kills, end, doubles)
	counted(t, linesOf(t, files[0].Path), int(end))
	alarms := linesOf(t, files[1].Path)
	got, missing := links(t, 0, alarms)
	if len(missing) != 0 {
		t.Errorf("of the alarms something is missing behind %v", missing)
	}
	want, err := st.Trails(t.Context(), 0, 1<<20)
	must(t, err)
	n := 0
	for _, e := range want {
		if e.Severity != "alarm" {
			continue
		}
		if n >= len(got) || got[n] != int(e.N) {
			t.Fatalf("alarm %d has not arrived; %d have", e.N, len(got))
		}
		n++
	}
	// The twin: were one entry lost, that would have been seen.
	for i, l := range alarms {
		if strings.Contains(l, fmt.Sprintf(` n="%d" `, got[len(got)/2])) {
			if _, missing := links(t, 0, append(append([]string{}, alarms[:i]...), alarms[i+1:]...)); len(missing) == 0 && n == len(alarms) {
				t.Error("a lost entry is not seen")
			}
		}
	}
}
