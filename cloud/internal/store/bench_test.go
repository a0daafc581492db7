package store_test

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/store"
	"github.com/tillward/tillward/simulator/postgres"
)

const benchFleet = 10_000

// bigFleet opens a store with many devices whose boot was accepted.
func bigFleet(b *testing.B) (*store.Store, []fleet.DeviceID) {
	b.Helper()
	dir := postgres.Place(b)
	s, err := store.Open(b.Context(), dir, quiet)
	must(b, err)
	b.Cleanup(func() { _ = s.Close() })
	const numbers = ` WITH RECURSIVE c(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM c WHERE n < ? - 1) `
	sql1(b, dir, `INSERT INTO device (id, tenant, tier, model, serial, site, "group", label, ek_hash, ak_public, cert_serial, cert_not_after, trust, trust_reasons,
		attested_at, reset_count, enrolled_at, boot_digest, boot_release)`+numbers+
		`SELECT 'd' || n, 'main', 'C', 'vend-1', 'S' || n, 'berlin', '', '', 'ek' || n, randomblob(88), 'ab', 1, 'attested', '[]', 1, 8, 1, X'44', 'agent/1.0.0' FROM c`, benchFleet)
	sql1(b, dir, `INSERT INTO trail (device, head, hash, entries, broken)`+numbers+`SELECT 'd' || n, 0, zeroblob(32), 0, 0 FROM c`, benchFleet)
	sql1(b, dir, `INSERT INTO attestation (device, n, at, trust, "release", reset_count, digest, findings)`+numbers+
		`SELECT 'd' || n, 1, 1, 'attested', 'agent/1.0.0', 8, X'44', '[]' FROM c`, benchFleet)
	ids := make([]fleet.DeviceID, benchFleet)
	for n := range ids {
		ids[n] = fleet.DeviceID(fmt.Sprintf("d%d", n))
	}
	b.ReportAllocs()
	b.ResetTimer()
	return s, ids
}

// each calls f for one device after another, many at once, as connections do.
func each(b *testing.B, ids []fleet.DeviceID, f func(fleet.DeviceID) error) {
	b.Helper()
	var n atomic.Int64
	b.SetParallelism(128)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := f(ids[int(n.Add(1))%len(ids)]); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

// BenchmarkAdmit is the first thing of every connection.
func BenchmarkAdmit(b *testing.B) {
	s, ids := bigFleet(b)
	each(b, ids, func(id fleet.DeviceID) error { _, err := s.Admit(b.Context(), id, "main", "ab"); return err })
}

// BenchmarkAppraisedSteady is what a reconnect storm of devices costs that have not changed.
func BenchmarkAppraisedSteady(b *testing.B) {
	s, ids := bigFleet(b)
	each(b, ids, func(id fleet.DeviceID) error { return s.Appraised(b.Context(), good(id, "", "D", time.Now()), false) })
}

// BenchmarkAppraisedChanged is a verdict that says something new: durable when it returns.
func BenchmarkAppraisedChanged(b *testing.B) {
	s, ids := bigFleet(b)
	var n atomic.Int64
	each(b, ids, func(id fleet.DeviceID) error {
		return s.Appraised(b.Context(), good(id, "agent/1.0.0", fmt.Sprint(n.Add(1)), time.Now()), false)
	})
}

// BenchmarkAppraisedAlone is the same from one connection: nobody shares its commit.
func BenchmarkAppraisedAlone(b *testing.B) {
	s, ids := bigFleet(b)
	for n := range b.N {
		must(b, s.Appraised(b.Context(), good(ids[n%len(ids)], "agent/1.0.0", fmt.Sprint(n), time.Now()), false))
	}
}

// BenchmarkDeviceByID is what the verifier looks at before it judges.
func BenchmarkDeviceByID(b *testing.B) {
	s, ids := bigFleet(b)
	each(b, ids, func(id fleet.DeviceID) error { _, err := s.DeviceByID(b.Context(), id); return err })
}

// BenchmarkUnits is what the rollout loop reads of 150,000 devices: all of them once, then what changed.
func BenchmarkUnits(b *testing.B) {
	const members = 150_000
	dir := postgres.Place(b)
	s, err := store.Open(b.Context(), dir, quiet)
	must(b, err)
	b.Cleanup(func() { _ = s.Close() })
	const numbers = ` WITH RECURSIVE c(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM c WHERE n < ? - 1) `
	sql1(b, dir, `INSERT INTO device (id, tenant, tier, model, serial, site, "group", label, ek_hash, ak_public, cert_serial, cert_not_after, trust, trust_reasons,
		attested_at, reset_count, enrolled_at, boot_digest, boot_release, installed, last_seen)`+numbers+
		`SELECT 'd' || n, 'main', 'C', 'vend-' || (n % 7), 'S' || n, 'site-' || (n / 12), '', '', 'ek' || n, randomblob(88), 'ab', 1, 'attested', '[]', 1, 8, 1, X'44', 'agent/1.0.0',
		'[{"component":"agent","version":"0.9.0","slot":"' || CASE WHEN n % 2 = 0 THEN 'a' ELSE 'b' END || '"},{"component":"os/vend-1/prod","version":"3.0.0"}]', 1 FROM c`, members)
	must(b, s.AddRelease(b.Context(), fleet.Release{ID: "agent/1.0.0", Component: "agent", Class: "agent", Version: "1.0.0"}, event("release.add")))
	must(b, s.AddRollout(b.Context(), fleet.Rollout{ID: "r1", Tenant: "main", Release: "agent/1.0.0", State: fleet.RolloutRunning, StartedAt: time.Now().Add(-time.Hour)}, event("rollout.add")))
	began := time.Now()
	n, err := s.Enlist(b.Context(), "r1")
	must(b, err)
	b.Logf("%d enlisted in %s", n, time.Since(began))
	us, cursor, err := s.Units(b.Context(), "r1", 0)
	must(b, err)
	waves := map[fleet.ExecutionID]int{}
	for n, u := range us {
		waves[u.ID] = n % 3
	}
	began = time.Now()
	must(b, s.AssignWaves(b.Context(), "r1", waves))
	b.Logf("waves assigned in %s", time.Since(began))

	run := func(name string, f func() error) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				must(b, f())
			}
		})
	}
	run("all", func() error { _, _, err := s.Units(b.Context(), "r1", 0); return err })
	_, cursor, err = s.Units(b.Context(), "r1", cursor)
	must(b, err)
	run("nothing new", func() error { _, _, err := s.Units(b.Context(), "r1", cursor); return err })
	run("enlist nobody", func() error { _, err := s.Enlist(b.Context(), "r1"); return err })
	run("enlist somebody", func() error { // at most a tenth of the time, see the figure
		site := "elsewhere"
		if err := s.SetDevice(b.Context(), "main", "d7", store.DevicePatch{Site: &site}, event("device.set")); err != nil {
			return err
		}
		_, err := s.Enlist(b.Context(), "r1")
		return err
	})
	run("one moves", func() error {
		if _, err := s.MoveExecution(b.Context(), store.ExecutionStep{ID: us[0].ID, State: fleet.ExecOffered, Attempt: 1}, noon); err != nil {
			return err
		}
		_, _, err := s.Units(b.Context(), "r1", cursor)
		return err
	})
	run("progress", func() error { _, err := s.Progress(b.Context(), "r1", noon); return err })
	run("counts", func() error { _, err := s.Counts(b.Context(), "r1"); return err })
	run("health", func() error { _, err := s.RolloutHealth(b.Context(), "r1"); return err })
	run("sites", func() error { _, err := s.Sites(b.Context(), "main"); return err })
}

// benchCounter is the counter of an ordinary till.
func benchCounter(reason string) []fleet.Peripheral {
	health := "OK"
	if reason != "" {
		health = "Fault"
	}
	return []fleet.Peripheral{
		{
			ID: "receipt", Category: "POSPrinter", Driver: "escpos", Maker: "Maker", Model: "TM-1", Serial: "P-7", Firmware: "1.0", Claim: "own", Key: "usb:04b8:0e15:P-7", Interface: "USB",
			Caps: []string{"CapCoverSensor", "CapRecEmptySensor", "CapRecNearEndSensor"}, RollLines: 18876, Power: "PS_ONLINE",
			Sensors: map[string]string{"CoverOpen": "No", "RecEmpty": "No", "RecNearEnd": "No", "M_CutterError": "No"}, Said: fleet.Light{Health: health, Reason: reason, Since: noon},
		},
		{ID: "drawer", Category: "CashDrawer", Driver: "escpos", Power: "PS_ONLINE", Sensors: map[string]string{"DrawerOpened": "No"}, Said: fleet.Light{Health: "OK", Since: noon}},
		{ID: "reader", Category: "SmartCardRW", Driver: "pcsc", Maker: "Maker", Model: "R1", Power: "PS_ONLINE", Sensors: map[string]string{"SCPresentSensor": "No"}, Said: fleet.Light{Health: "OK", Since: noon}},
		{ID: "scanner", Category: "Scanner", Driver: "scanner", Power: "PS_ONLINE", Said: fleet.Light{Health: "OK", Since: noon}},
	}
}

// BenchmarkHeartbeat is what a report of a till's state costs, 256 in a commit: with nothing said of peripherals, with
// four that are as they were, and with one of them that changed.
func BenchmarkHeartbeat(b *testing.B) {
	const group = 256
	for _, kind := range []string{"without", "as they were", "one changed"} {
		b.Run(kind, func(b *testing.B) {
			s, ids := bigFleet(b)
			raw, said := make([]byte, 1200), map[string][]fleet.Peripheral{"": benchCounter(""), "COVER_OPEN": benchCounter("COVER_OPEN")}
			seq := uint64(0)
			round := func(n int, reason string) {
				in := make([]store.Intake, group)
				seq++
				for i := range in {
					in[i] = store.Intake{Device: ids[(n*group+i)%len(ids)], Tenant: "main", At: noon, Report: &store.Report{
						Boot: [16]byte{1}, Seq: seq, Sent: noon, AgentVersion: "1.0.0", Slot: "a", Raw: raw, Installed: []fleet.Installed{{Component: "agent", Version: "1.0.0", Slot: "a"}},
					}}
					if kind != "without" {
						in[i].Report.Peripherals = said[reason]
					}
				}
				_, err := s.Commit(b.Context(), in)
				must(b, err)
			}
			for n := range benchFleet/group + 1 { // the first report writes it all
				round(n, "")
			}
			b.ResetTimer()
			for n := range b.N {
				reason := ""
				if kind == "one changed" && n/(benchFleet/group+1)%2 == 0 {
					reason = "COVER_OPEN"
				}
				round(n, reason)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*group), "ns/report")
		})
	}
}

// BenchmarkPresence is what it costs that a till is back that was lost.
func BenchmarkPresence(b *testing.B) {
	s, ids := bigFleet(b)
	var n atomic.Int64
	each(b, ids, func(id fleet.DeviceID) error {
		at := noon.Add(time.Duration(n.Add(1)) * time.Hour)
		if err := s.SetPresence(b.Context(), id, false, at); err != nil {
			return err
		}
		return s.SetPresence(b.Context(), id, true, at.Add(10*time.Minute))
	})
}

// BenchmarkCommit is what ingest costs, a message of each of 256 devices in a commit: telemetry that is new, telemetry
// of which one message came before, and entries of the audit trail.
func BenchmarkCommit(b *testing.B) {
	const group, each = 256, 12
	for _, kind := range []string{"new", "one again", "audit"} {
		b.Run(kind, func(b *testing.B) {
			s, ids := bigFleet(b)
			seq, hashes := uint64(0), make([][32]byte, group)
			round := func() {
				in := make([]store.Intake, group)
				seq++
				for i := range in {
					in[i] = store.Intake{Device: ids[i], Tenant: "main", At: noon}
					if kind == "audit" {
						in[i].Audit = chain(b, (seq-1)*each+1, hashes[i], each, "link.up")
						hashes[i] = in[i].Audit[each-1].Hash
						continue
					}
					in[i].Samples = samples(seq, each)
				}
				if kind == "one again" && seq > 1 {
					in[7].Samples = samples(seq-1, each)
				}
				_, err := s.Commit(b.Context(), in)
				must(b, err)
			}
			round()
			b.ResetTimer()
			for range b.N {
				round()
			}
			b.ReportMetric(float64(b.N*group*each)/b.Elapsed().Seconds(), "rows/s")
		})
	}
}
