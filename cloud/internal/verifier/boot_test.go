package verifier_test

import (
	"context"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/verifier"
	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/provisioning/boot"
	"github.com/tillward/tillward/simulator/tpmfarm"
)

// answer lets a device answer its newest challenge.
func (x *site) answer(c *chip, seq uint64, full bool) wire.Challenge {
	x.t.Helper()
	ask := x.last(c.id)
	if len(ask.Nonce) == 0 {
		x.t.Fatalf("no challenge is open: %+v", ask)
	}
	if full || ask.Need == wire.NeedLog {
		return x.show(c.id, c.full(ask.Nonce, seq))
	}
	return x.show(c.id, c.steady(ask.Nonce, seq))
}

func waive(x *site, id fleet.DeviceID) {
	x.t.Helper()
	w := fleet.Waiver{Until: time.Now().Add(time.Hour), By: "ann", Reason: "spare part"}
	if err := x.s.Waive(x.t.Context(), "main", id, w, by("ann")); err != nil {
		x.t.Fatal(err)
	}
}

// TestBoot shows a boot that is what the release says, and each way in which one can be another.
func TestBoot(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(own *chip, m *wire.EvidenceReport)
		check  string
		pcr    string
	}{
		"good": {},
		"stripped log": {
			change: func(_ *chip, m *wire.EvidenceReport) { m.Log = nil }, check: "boot.no-log",
		},
		"edited log": {
			change: func(own *chip, m *wire.EvidenceReport) {
				fw := tpmfarm.Default("os/1")
				fw.Event("cmdline").Image = []byte("init=/bin/sh")
				m.Log = pack(own, fw)
			}, check: "boot.log-replay", pcr: "8",
		},
		"log of another boot": {
			change: func(own *chip, m *wire.EvidenceReport) { m.Log = pack(own, tpmfarm.Default("os/2")) }, check: "boot.log-replay", pcr: "9",
		},
		"event that only the log has": {
			change: func(own *chip, m *wire.EvidenceReport) {
				fw := tpmfarm.Default("os/1")
				fw.Events = append(fw.Events, tpmfarm.Measured{Name: "x", PCR: 4, Type: 4, Data: []byte("x")})
				m.Log = pack(own, fw)
			}, check: "boot.log-replay", pcr: "4",
		},
		"log that is no gzip": {
			change: func(_ *chip, m *wire.EvidenceReport) { m.Log = []byte("log") }, check: "boot.log-replay",
		},
		"another command line": {
			change: func(own *chip, m *wire.EvidenceReport) {
				own.fw.Event("cmdline").Image = []byte("init=/bin/sh")
				*m = own.full(here, 1)
			}, check: "boot.unknown-event", pcr: "8",
		},
		"Secure Boot off": {
			change: func(own *chip, m *wire.EvidenceReport) {
				own.fw.Event("SecureBoot").Data[len(own.fw.Event("SecureBoot").Data)-1] = 0
				*m = own.full(here, 1)
			}, check: "boot.unknown-event", pcr: "7",
		},
		"a part that was left out": {
			change: func(own *chip, m *wire.EvidenceReport) { own.fw = own.fw.Without("agent"); *m = own.full(here, 1) }, check: "boot.missing-event", pcr: "9",
		},
		"a register without any event": {
			change: func(own *chip, m *wire.EvidenceReport) {
				own.fw = own.fw.Without("cmdline")
				*m = own.full(here, 1)
			}, check: "boot.not-covered", pcr: "8",
		},
	} {
		t.Run(name, func(t *testing.T) {
			x := newSite(t)
			x.publish("os/1", tpmfarm.Default("os/1"))
			own, honest := x.enrol(newChip(t, "dev-1", "os/1")), x.enrol(newChip(t, "dev-9", "os/1"))
			m := own.full(here, 1)
			want := fleet.Attested
			if tt.change != nil {
				tt.change(own, &m)
				want = fleet.Quarantined
			}
			got := x.show("dev-1", m)
			x.wantVerdict(name, got, want, tt.check)
			x.wantVerdict("an honest device beside it", x.show("dev-9", honest.full(here, 1)), fleet.Attested, "")
			d := x.device("dev-1")
			if d.Trust != want || (want == fleet.Attested) != (d.BootRelease == "os/1") || (want == fleet.Attested) != (len(d.BootDigest) == 32) {
				t.Errorf("on file %s, release %q, digest %x", d.Trust, d.BootRelease, d.BootDigest)
			}
			if want == fleet.Attested {
				if got.Release != "os/1" {
					t.Errorf("release: got %q", got.Release)
				}
				return
			}
			f := got.Findings[0]
			if f.PCR != tt.pcr || f.Text == "" || got.Reasons[0] != f.Text || !slices.Equal(got.Actions, []string{wire.ActionDiagnose, wire.ActionUpdate, wire.ActionReboot}) {
				t.Errorf("got %+v, want it explained for PCR %q", got, tt.pcr)
			}
			if _, ev := x.trail("dev-1"); ev.Detail["check"] != tt.check || ev.Detail["pcr"] != tt.pcr || ev.Detail["event"] != f.Event || ev.Detail["reason"] != f.Text || ev.Detail["release"] != f.Release {
				t.Errorf("audit: got %+v", ev.Detail)
			}
		})
	}
}

func pack(c *chip, fw tpmfarm.Firmware) []byte {
	c.t.Helper()
	b, err := boot.Pack(fw.Log())
	if err != nil {
		c.t.Fatal(err)
	}
	return b
}

// TestSteady follows a device over reconnects and reboots: the quote alone is enough for the boot that was accepted
// last, in this life of the service or another, and for nothing else.
func TestSteady(t *testing.T) {
	x := newSite(t)
	x.publish("os/1", tpmfarm.Default("os/1"))
	own := x.enrol(newChip(t, "dev-1", "os/1"))
	needsLog := func(what string, got wire.Challenge) {
		t.Helper()
		if got.Verdict != "" || got.Need != wire.NeedLog || len(got.Nonce) != 32 {
			t.Errorf("%s: got %+v, want to be asked for the log", what, got)
		}
	}
	needsLog("nothing accepted yet", x.show("dev-1", own.steady(here, 1)))
	if d := x.device("dev-1"); d.Trust != fleet.Pending {
		t.Errorf("asked for the log: on file %s, want pending", d.Trust)
	}
	x.wantVerdict("with the log", x.answer(own, 2, true), fleet.Attested, "")
	x.wantVerdict("quote alone", x.show("dev-1", own.steady(here, 3)), fleet.Attested, "")
	if got := x.last("dev-1"); got.Release != "os/1" {
		t.Errorf("release: got %q", got.Release)
	}
	x.wantVerdict("on the next connection", x.showOn("dev-1", own.steady(there, 1), there, false), fleet.Attested, "")
	again := newSite(t, func(o *verifier.Options) { o.Devices, o.Firmware = x.s, x.s })
	again.s, again.exporter["dev-1"] = x.s, here
	again.wantVerdict("after a start of the service", again.show("dev-1", own.steady(here, 1)), fleet.Attested, "")

	own.reboot(own.fw)
	needsLog("after a reboot", x.show("dev-1", own.steady(here, 1)))
	got := x.show("dev-1", own.steady(x.last("dev-1").Nonce, 2))
	x.wantVerdict("asked for the log, answered without", got, fleet.Quarantined, "boot.no-log")
	x.wantVerdict("and with it", x.show("dev-1", own.full(here, 3)), fleet.Attested, "")
	own.fw.Event("cmdline").Image = []byte("init=/bin/sh")
	needsLog("another register in the same boot", x.show("dev-1", own.steady(here, 4)))
	x.wantVerdict("and its log", x.answer(own, 5, true), fleet.Quarantined, "boot.unknown-event")
	needsLog("quarantined", x.show("dev-1", own.steady(here, 6)))
	if kinds, _ := x.trail("dev-1"); !slices.Equal(kinds, []string{"attest.attested", "attest.quarantined", "attest.attested", "attest.quarantined"}) {
		t.Errorf("audit: got %v, want an entry for each change", kinds)
	}
}

// TestStaleHeals: silence is stale; the quote alone is enough to come back.
func TestStaleHeals(t *testing.T) {
	x := newSite(t)
	x.publish("os/1", tpmfarm.Default("os/1"))
	own := x.enrol(newChip(t, "dev-1", "os/1"))
	x.show("dev-1", own.full(here, 1))
	if ds, err := x.s.MarkStale(t.Context(), time.Now().Add(time.Hour)); err != nil || len(ds) != 1 {
		t.Fatalf("got %v, %v", ds, err)
	}
	x.wantVerdict("back", x.show("dev-1", own.steady(here, 2)), fleet.Attested, "")
	if d := x.device("dev-1"); d.Trust != fleet.Attested {
		t.Errorf("on file %s", d.Trust)
	}
}

// TestUnjudged: a model of which no release says how it boots is what the operator decided, and is judged in full once
// a release says so.
func TestUnjudged(t *testing.T) {
	for _, want := range []fleet.Trust{fleet.Attested, fleet.Degraded, fleet.Quarantined, ""} {
		x := newSite(t, func(o *verifier.Options) { o.Unjudged = want })
		if want == "" {
			want = fleet.Quarantined
		}
		own := x.enrol(newChip(t, "dev-1", "os/1"))
		x.wantVerdict("full", x.show("dev-1", own.full(here, 1)), want, "boot.unjudged")
		if want == fleet.Quarantined {
			continue
		}
		x.wantVerdict("quote alone", x.show("dev-1", own.steady(here, 2)), want, "boot.unjudged")
		if kinds, _ := x.trail("dev-1"); len(kinds) != 1 {
			t.Errorf("audit: got %v, want one entry", kinds)
		}
		x.publish("os/1", tpmfarm.Default("os/1"))
		if got := x.show("dev-1", own.steady(here, 3)); got.Need != wire.NeedLog {
			t.Errorf("now that a release says how it boots: got %+v, want to be asked for the log", got)
		}
		x.wantVerdict("with the log", x.answer(own, 4, true), fleet.Attested, "")
	}
}

// TestReleases: what is running and what is offered is good; after the commit the old one is not any more.
func TestReleases(t *testing.T) {
	x := newSite(t)
	for _, release := range []string{"os/1", "os/2", "os/3"} {
		x.publish(release, tpmfarm.Default(release))
	}
	offers := &offers{Firmware: x.s}
	v := newSite(t, func(o *verifier.Options) { o.Devices, o.Firmware = x.s, offers })
	v.s = x.s
	own := v.enrol(newChip(t, "dev-1", "os/2"))
	seq := uint64(0)
	boots := func(release string) wire.Challenge {
		seq++
		own.reboot(tpmfarm.Default(release))
		return v.show("dev-1", own.full(here, seq))
	}
	v.wantVerdict("the first boot may be any", boots("os/2"), fleet.Attested, "")
	v.wantVerdict("an older one", boots("os/1"), fleet.Quarantined, "boot.old-release")
	if f := v.last("dev-1").Findings[0]; f.Release != "os/1" || !strings.Contains(f.Text, "os/2") {
		t.Errorf("got %+v, want both releases named", f)
	}
	v.wantVerdict("a newer one that nobody offered", boots("os/3"), fleet.Quarantined, "boot.not-offered")
	v.wantVerdict("none that there is", boots("os/4"), fleet.Quarantined, "boot.unknown-event")
	v.wantVerdict("the running one", boots("os/2"), fleet.Attested, "")
	offers.id = "os/3"
	v.wantVerdict("the one offered", boots("os/3"), fleet.Attested, "")
	if d := v.device("dev-1"); d.BootRelease != "os/2" || v.last("dev-1").Release != "os/3" {
		t.Errorf("before the commit: on file %s, told %s", d.BootRelease, v.last("dev-1").Release)
	}
	v.wantVerdict("a fall back", boots("os/2"), fleet.Attested, "")
	v.wantVerdict("the one offered, again", boots("os/3"), fleet.Attested, "")
	err := x.s.Appraised(t.Context(), fleet.Attestation{Device: "dev-1", At: time.Now(), Trust: fleet.Attested, Release: "os/3", ResetCount: own.reset}, true)
	if err != nil {
		t.Fatal(err)
	}
	offers.id = ""
	v.wantVerdict("old release after commit", boots("os/2"), fleet.Quarantined, "boot.old-release")
	v.wantVerdict("the new one", boots("os/3"), fleet.Attested, "")
	offers.err = errors.New("disk is gone")
	err = v.v.Appraise(t.Context(), verifier.Evidence{Device: "dev-1", Payload: encode(t, own.full(here, seq+1)), Exporter: here, At: time.Now()})
	if !errors.Is(err, offers.err) {
		t.Errorf("got %v, want %v", err, offers.err)
	}
}

// offers is a store in which devices are offered one release.
type offers struct {
	verifier.Firmware
	id  fleet.ReleaseID
	err error
}

func (o *offers) OfferedRelease(context.Context, fleet.DeviceID) (fleet.ReleaseID, error) {
	if o.err == nil && o.id == "" {
		return "", fleet.ErrNotFound
	}
	return o.id, o.err
}

// TestDecisions follows an event that no release knows: it waits in the queue of the model, once for all devices;
// approved, the next round attests; rejected, it does not.
func TestDecisions(t *testing.T) {
	strange := tpmfarm.Default("os/1")
	strange.Event("firmware").Image = []byte("firmware volume 2")
	for _, tt := range []struct {
		decide fleet.Approval
		soft   bool
		first  fleet.Trust
		then   fleet.Trust
		check  string
	}{
		{fleet.ApprovalGranted, false, fleet.Quarantined, fleet.Attested, ""},
		{fleet.ApprovalGranted, true, fleet.Degraded, fleet.Attested, ""},
		{fleet.ApprovalRejected, false, fleet.Quarantined, fleet.Quarantined, "boot.rejected-event"},
		{fleet.ApprovalRejected, true, fleet.Degraded, fleet.Quarantined, "boot.rejected-event"},
	} {
		x := newSite(t)
		x.publish("os/1", tpmfarm.Default("os/1"), func(r *boot.Reference) {
			if tt.soft {
				r.Soft = []int{0}
			}
		})
		one, two := x.enrol(newChip(t, "dev-1", "os/1")), x.enrol(newChip(t, "dev-2", "os/1"))
		well := x.enrol(newChip(t, "dev-9", "os/1"))
		one.fw, two.fw = strange, strange
		x.wantVerdict("first", x.show("dev-1", one.full(here, 1)), tt.first, "boot.unknown-event")
		x.wantVerdict("another of the model", x.show("dev-2", two.full(here, 1)), tt.first, "boot.unknown-event")
		x.wantVerdict("one without it", x.show("dev-9", well.full(here, 1)), fleet.Attested, "")
		if d := x.device("dev-1"); (len(d.BootDigest) == 32) != tt.soft {
			t.Errorf("soft %v: digest on file %x", tt.soft, d.BootDigest)
		}
		if tt.soft {
			x.wantVerdict("the quote alone is as good as before", x.show("dev-1", one.steady(here, 2)), fleet.Degraded, "boot.unknown-event")
		}
		evs, _, err := x.s.FirmwareEvents(t.Context(), "main", model, fleet.ApprovalOpen, fleet.Page{})
		digest := strange.Event("firmware").Digest()
		if err != nil || len(evs) != 1 || evs[0].Devices != 2 || evs[0].PCR != 0 || evs[0].Digest != hex.EncodeToString(digest[:]) {
			t.Fatalf("waiting: got %+v, %v, want one event of two devices", evs, err)
		}
		if err := x.s.DecideFirmware(t.Context(), "main", model, evs[0].PCR, evs[0].Digest, tt.decide, by("ann")); err != nil {
			t.Fatal(err)
		}
		sent := len(x.sent["dev-9"])
		if n := x.v.Reappraise(model); n != 2 || len(x.sent["dev-9"]) != sent {
			t.Errorf("asked %d devices, want those two", n)
		}
		if x.last("dev-1").Need != wire.NeedLog {
			t.Errorf("got %+v, want to be asked for the log", x.last("dev-1"))
		}
		x.wantVerdict("decided", x.answer(one, 3, false), tt.then, tt.check)
		x.wantVerdict("decided for the other", x.answer(two, 3, false), tt.then, tt.check)
		// Who was attested is looked at as well, when it is due.
		if err := x.v.Challenge("dev-9"); err != nil {
			t.Fatal(err)
		}
		if x.last("dev-9").Need != wire.NeedLog {
			t.Errorf("attested: got %+v, want to be asked for the log with the next challenge", x.last("dev-9"))
		}
		x.wantVerdict("attested as before", x.answer(well, 3, false), fleet.Attested, "")
		if got := x.show("dev-9", well.steady(here, 4)); got.Verdict != "attested" {
			t.Errorf("and with the quote alone again: got %+v", got)
		}
	}
}

// TestDecidedMeanwhile: what was decided while a device was appraised is not overlooked.
func TestDecidedMeanwhile(t *testing.T) {
	x := newSite(t)
	x.publish("os/1", tpmfarm.Default("os/1"))
	own := x.enrol(newChip(t, "dev-1", "os/1"))
	m := &meddler{Devices: x.s}
	x.v = verifier.New(verifier.Options{Devices: m, Firmware: x.s, Link: x, Every: time.Hour, Changed: func(fleet.Device) {}, Log: quiet})
	m.before = func() { x.v.Forget(model) }
	x.wantVerdict("appraised", x.show("dev-1", own.full(here, 1)), fleet.Attested, "")
	if got := x.show("dev-1", own.steady(here, 2)); got.Need != wire.NeedLog {
		t.Errorf("got %+v, want it judged in full again", got)
	}
	m.before = func() { x.v.Forget("another") }
	x.wantVerdict("nothing in between", x.answer(own, 3, true), fleet.Attested, "")
	x.wantVerdict("the quote alone", x.show("dev-1", own.steady(here, 4)), fleet.Attested, "")
	m.before = func() { x.v.Reappraise(model) }
	x.wantVerdict("looked at again meanwhile", x.show("dev-1", own.steady(here, 5)), fleet.Attested, "")
	if got := x.show("dev-1", own.steady(here, 6)); got.Need != wire.NeedLog {
		t.Errorf("got %+v, want it judged in full again", got)
	}
}

// meddler does something while a verdict is noted.
type meddler struct {
	verifier.Devices
	before func()
}

func (m *meddler) Appraised(ctx context.Context, a fleet.Attestation, committed bool, ev ...fleet.AuditEvent) error {
	m.before()
	return m.Devices.Appraised(ctx, a, committed, ev...)
}

// TestWaiver lets a device in on somebody's word, until it lapses; against a quote that proves nothing, and a revoked
// identity, there is none.
func TestWaiver(t *testing.T) {
	x := newSite(t)
	x.publish("os/1", tpmfarm.Default("os/1"))
	own := x.enrol(newChip(t, "dev-1", "os/1"))
	own.fw.Event("cmdline").Image = []byte("debug")
	x.wantVerdict("without", x.show("dev-1", own.full(here, 1)), fleet.Quarantined, "boot.unknown-event")
	waive(x, "dev-1")
	got := x.show("dev-1", own.full(here, 2))
	x.wantVerdict("covered", got, fleet.Degraded, "boot.unknown-event")
	d := x.device("dev-1")
	if got.Until != d.Waiver.Until.UnixMilli() || got.Until == 0 || len(d.BootDigest) != 0 || d.BootRelease != "" {
		t.Errorf("until %d, on file %s with digest %x, release %q; want the end of the waiver, and the boot not accepted", got.Until, d.Waiver.Until, d.BootDigest, d.BootRelease)
	}
	if _, ev := x.trail("dev-1"); ev.Kind != "attest.degraded" || ev.Severity != "warn" || ev.Detail["waived_by"] != "ann" || ev.Detail["until"] == "" {
		t.Errorf("audit: got %+v", ev)
	}
	if got := x.show("dev-1", own.steady(here, 3)); got.Need != wire.NeedLog {
		t.Errorf("quote alone: got %+v, want it judged in full each time", got)
	}
	x.wantVerdict("a flipped signature", x.show("dev-1", own.forgeSignature(4)), fleet.Quarantined, "quote.signature")
	x.wantVerdict("another connection", x.show("dev-1", own.full(there, 5)), fleet.Quarantined, "quote.binding")
	late := own.full(here, 6)
	err := x.v.Appraise(t.Context(), verifier.Evidence{Device: "dev-1", Payload: encode(t, late), Exporter: here, At: time.Now().Add(2 * time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	x.wantVerdict("lapsed", x.last("dev-1"), fleet.Quarantined, "boot.unknown-event")
	x.wantVerdict("covered again", x.show("dev-1", own.full(here, 7)), fleet.Degraded, "boot.unknown-event")
	x.wantVerdict("a recovery certificate", x.showOn("dev-1", own.full(here, 8), here, true), fleet.Quarantined, "identity.restricted")
	if err := x.s.Revoke(t.Context(), "main", "dev-1", "stolen", by("ann")); err != nil {
		t.Fatal(err)
	}
	got = x.show("dev-1", own.full(here, 9))
	x.wantVerdict("revoked", got, fleet.Quarantined, "identity.revoked")
	if !strings.Contains(got.Reasons[0], "stolen") {
		t.Errorf("got %q, want the reason", got.Reasons)
	}
}

func (c *chip) forgeSignature(seq uint64) wire.EvidenceReport {
	m := c.full(here, seq)
	m.Signature = flip(m.Signature, 40)
	return m
}

// TestRevokedMeanwhile: a revocation that crosses an appraisal wins.
func TestRevokedMeanwhile(t *testing.T) {
	x := newSite(t)
	own := x.enrol(newChip(t, "dev-1", "os/1"))
	m := &meddler{Devices: x.s, before: func() {
		if err := x.s.Revoke(t.Context(), "main", "dev-1", "stolen", by("ann")); err != nil && !errors.Is(err, fleet.ErrConflict) {
			t.Error(err)
		}
	}}
	x.v = verifier.New(verifier.Options{Devices: m, Firmware: x.s, Link: x, Every: time.Hour, Unjudged: fleet.Attested, Changed: func(fleet.Device) {}, Log: quiet})
	x.wantVerdict("crossed", x.show("dev-1", own.full(here, 1)), fleet.Quarantined, "identity.revoked")
	if d := x.device("dev-1"); d.Trust != fleet.Quarantined || len(d.BootDigest) != 0 {
		t.Errorf("on file %s", d.Trust)
	}
}

// TestRestricted: good evidence over a recovery certificate is still quarantine; with its own it is attested.
func TestRestricted(t *testing.T) {
	x := newSite(t)
	x.publish("os/1", tpmfarm.Default("os/1"))
	own := x.enrol(newChip(t, "dev-1", "os/1"))
	x.wantVerdict("recovery", x.showOn("dev-1", own.full(here, 1), here, true), fleet.Quarantined, "identity.restricted")
	x.wantVerdict("member", x.showOn("dev-1", own.full(there, 1), there, false), fleet.Attested, "")
}

// TestApplicant judges a boot before there is a device.
func TestApplicant(t *testing.T) {
	x := newSite(t, func(o *verifier.Options) { o.Unjudged = fleet.Degraded })
	fw := tpmfarm.Default("os/1")
	log := pack(newChip(t, "x", "os/1"), fw)
	judge := func(registers [][]byte, log []byte) boot.Result {
		t.Helper()
		res, err := x.v.AppraiseBoot(t.Context(), model, "main", registers, log)
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	if res := judge(fw.Registers(), log); res.Trust != "degraded" || res.Findings[0].Check != "boot.unjudged" {
		t.Errorf("no reference: got %+v", res)
	}
	x.publish("os/1", fw)
	if res := judge(fw.Registers(), log); res.Trust != "attested" || res.Release != "os/1" || len(res.Findings) != 0 {
		t.Errorf("good: got %+v", res)
	}
	if res := judge(fw.Registers(), nil); res.Trust != "quarantined" || res.Findings[0].Check != "boot.no-log" {
		t.Errorf("no log: got %+v", res)
	}
	if res := judge(tpmfarm.Default("os/2").Registers(), log); res.Trust != "quarantined" || res.Findings[0].Check != "boot.log-replay" {
		t.Errorf("another boot: got %+v", res)
	}
	if err := x.s.Close(); err != nil {
		t.Fatal(err)
	}
	x.v.Forget("")
	if res, err := x.v.AppraiseBoot(t.Context(), model, "main", fw.Registers(), log); err == nil {
		t.Errorf("without a store: got %+v", res)
	}
}

// TestMember: a device that renews is measured as its evidence is: by what it runs and was offered, and not by another
// release that boots alike, nor by one that it has left behind.
func TestMember(t *testing.T) {
	x := newSite(t)
	one, two := tpmfarm.Default("os/1"), tpmfarm.Default("os/2")
	x.publish("os/1", one)
	x.publish("os/2", two)
	x.publish("agent/2", two) // touches nothing that is measured
	own := x.enrol(newChip(t, "dev-1", "os/2"))
	renews := func(fw tpmfarm.Firmware) boot.Result {
		t.Helper()
		res, err := x.v.AppraiseMember(t.Context(), "dev-1", fw.Registers(), pack(own, fw))
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	if err := x.s.Appraised(t.Context(), fleet.Attestation{Device: "dev-1", At: time.Now(), Trust: fleet.Attested, Release: "agent/2"}, true); err != nil {
		t.Fatal(err)
	}
	if res := renews(two); res.Trust != "attested" || res.Release != "agent/2" {
		t.Errorf("what it runs: got %+v", res)
	}
	if res := renews(one); res.Trust != "quarantined" || res.Findings[0].Check != "boot.old-release" {
		t.Errorf("what it left: got %+v", res)
	}
	waive(x, "dev-1")
	if res := renews(one); res.Trust != "degraded" || res.Findings[0].Check != "boot.old-release" {
		t.Errorf("what it left, waived: got %+v", res)
	}
	if res, err := x.v.AppraiseMember(t.Context(), "nobody", one.Registers(), pack(own, one)); !errors.Is(err, fleet.ErrNotFound) {
		t.Errorf("nobody: got %+v, %v", res, err)
	}
}
