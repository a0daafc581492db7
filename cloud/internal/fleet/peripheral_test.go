package fleet_test

import (
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/hal"
)

// reasons are all codes that a light may give as its reason: what the sensors
// that till and service know say when they say Yes, and what neither is.
const reasons = `POWER_OFFLINE POWER_OFF_OFFLINE POWER_OFF
	COVER_OPEN REC_EMPTY REC_NEAREMPTY M_CUTTER_ERROR M_HEAD_TOO_HOT M_MECHANICAL_ERROR M_UNRECOVERABLE_ERROR
	DRAWEROPEN M_DRAWER_UNEXPECTED_OPEN M_DRAWER_LEFT_OPEN M_DRAWER_STUCK
	M_CARD_MUTE M_CARD_TORN M_PCSCD_GONE E_NOSERVICE M_TAMPERED M_EDGES_LOST M_DOOR_OPEN
	M_TEMP_HIGH M_SUPPLY_LOW M_DISK_LOW M_MEMORY_LOW M_HOST_HOT M_DISK_FAILING M_CLOCK_UNSYNCED
	E_ILLEGAL E_NOEXIST E_NOHARDWARE E_BUSY E_OFFLINE E_TIMEOUT E_FAILURE
	M_NO_SENSOR M_NOT_ASKED M_IN_USE M_NO_ACCESS M_NO_DRIVER M_TIMEOUT M_DRIVER_PANIC M_TILL_OFFLINE M_READ_ERRORS M_PAPER_SOON M_GONE`

func TestAdvice(t *testing.T) {
	said := map[string]string{}
	for reason := range strings.FieldsSeq(reasons) {
		a := fleet.Advice(fleet.Light{Health: fleet.HealthFault, Reason: reason})
		switch {
		case strings.Contains(a, "does not know"), a == "":
			t.Errorf("%s: nobody says what to do", reason)
		case !strings.HasSuffix(a, ".") || strings.Count(a, ".") > 1 || a[0] < 'A' || a[0] > 'Z':
			t.Errorf("%s: %q is not one sentence", reason, a)
		case said[a] != "":
			t.Errorf("%s and %s say the same", reason, said[a])
		}
		said[a] = reason
	}
	if n := len(fleet.Reasons()); n != len(said) {
		t.Errorf("there is advice for %d reasons and %d are known here", n, len(said))
	}
	if a := fleet.Advice(fleet.Light{Health: fleet.HealthOK}); a != "" {
		t.Errorf("OK: got %q, want nothing to do", a)
	}
	for _, l := range []fleet.Light{{Health: "Fault", Reason: "M_SOMETHING_NEW"}, {Health: "Unknown"}, {Health: "Fine", Reason: "paper low"}} {
		if a := fleet.Advice(l); a == "" {
			t.Errorf("%+v: got nothing, want to look at it", l)
		}
	}
}

func TestRoll(t *testing.T) {
	sensors := func(s string) map[string]string {
		out := map[string]string{}
		for f := range strings.FieldsSeq(s) {
			k, v, _ := strings.Cut(f, "=")
			out[k] = v
		}
		return out
	}
	for _, c := range []struct {
		category, power, sensors, health, reason string
		soon, worse                              bool
		want                                     string
	}{
		{"POSPrinter", "PS_ONLINE", "CoverOpen=No RecEmpty=No", "OK", "", false, false, "OK "},
		{"POSPrinter", "PS_ONLINE", "CoverOpen=No RecEmpty=No", "OK", "", true, false, "Attention M_PAPER_SOON"},
		{"SmartCardRW", "PS_ONLINE", "SCPresentSensor=No", "OK", "", false, true, "Attention M_READ_ERRORS"},
		{"POSPrinter", "PS_ONLINE", "CoverOpen=No RecEmpty=Yes", "Fault", "REC_EMPTY", true, true, "Fault REC_EMPTY"},
		{"POSPrinter", "PS_ONLINE", "CoverOpen=No RecNearEnd=Yes", "Attention", "REC_NEAREMPTY", true, false, "Attention REC_NEAREMPTY"},
		{"POSPrinter", "PS_OFF_OFFLINE", "", "Offline", "POWER_OFF_OFFLINE", true, false, "Offline POWER_OFF_OFFLINE"},
		{"POSPrinter", "PS_UNKNOWN", "", "Unknown", "M_IN_USE", false, false, "Unknown M_IN_USE"},
		{"POSPrinter", "PS_UNKNOWN", "", "Unknown", "M_NO_SENSOR", true, false, "Attention M_PAPER_SOON"},
		{"M_Other", "PS_ONLINE", "", "Unknown", "M_NO_DRIVER", false, false, "Unknown M_NO_DRIVER"},
		{"Scanner", "PS_ONLINE", "", "OK", "", false, false, "OK "},
		{"M_Environment", "PS_ONLINE", "M_TempHigh=No", "OK", "", false, false, "OK "},
		// What is not proven is not OK, whatever is said.
		{"POSPrinter", "PS_ONLINE", "CoverOpen=No", "OK", "", false, false, "Unknown M_NO_SENSOR"},
		{"POSPrinter", "PS_ONLINE", "CoverOpen=No RecEmpty=Unknown", "OK", "", false, false, "Unknown M_NO_SENSOR"},
		{"POSPrinter", "PS_ONLINE", "CoverOpen=No RecEmpty=maybe", "OK", "", false, false, "Unknown M_NO_SENSOR"},
		{"CashDrawer", "PS_ONLINE", "", "OK", "", false, false, "Unknown M_NO_SENSOR"},
		{"SmartCardRW", "PS_ONLINE", "", "OK", "", false, false, "Unknown M_NO_SENSOR"},
		{"M_TamperSwitch", "PS_ONLINE", "", "OK", "", false, false, "Unknown M_NO_SENSOR"},
		{"M_DoorSwitch", "PS_ONLINE", "", "OK", "", false, false, "Unknown M_NO_SENSOR"},
		{"M_Environment", "PS_ONLINE", "", "OK", "", false, false, "Unknown M_NO_SENSOR"},
		{"Scanner", "PS_UNKNOWN", "", "OK", "", false, false, "Unknown M_NOT_ASKED"},
		{"Scanner", "", "", "OK", "", false, false, "Unknown M_NOT_ASKED"},
		{"Scanner", "PS_OFF", "", "OK", "", false, false, "Offline POWER_OFF_OFFLINE"},
		{"Scanner", "PS_OFFLINE", "", "OK", "", false, false, "Fault POWER_OFFLINE"},
		{"Scanner", "PS_ONLINE", "", "Splendid", "", false, false, "Unknown M_NOT_ASKED"},
		{"Scanner", "PS_ONLINE", "", "", "", false, false, "Unknown M_NOT_ASKED"},
		{"Scanner", "PS_ONLINE", "", "ok", "", false, false, "Unknown M_NOT_ASKED"},
		{"LineDisplay", "PS_ONLINE", "", "OK", "", false, false, "OK "},
		{"M_Other", "PS_ONLINE", "", "OK", "", false, false, "Unknown M_NO_SENSOR"},
		{"Teleporter", "PS_ONLINE", "M_Safe=Yes", "OK", "", false, false, "Unknown M_NO_SENSOR"},
	} {
		p := fleet.Peripheral{Category: c.category, Power: c.power, Sensors: sensors(c.sensors), Said: fleet.Light{Health: c.health, Reason: c.reason}}
		if l := fleet.Roll(p, c.soon, c.worse); l.Health+" "+l.Reason != c.want {
			t.Errorf("%+v: got %s %s", c, l.Health, l.Reason)
		}
	}
}

// TestRollIsAsStrictAsTheAgent compares with what the agent goes by: what is not
// OK there, because no sensor tells, is not OK here either.
func TestRollIsAsStrictAsTheAgent(t *testing.T) {
	for _, c := range []hal.Category{
		hal.POSPrinter, hal.CashDrawer, hal.SmartCardRW, hal.Scanner, hal.LineDisplay, hal.Host, hal.Tamper, hal.Door, hal.Environment,
	} {
		agent := hal.Judge(c, hal.PowerOnline, nil)
		l := fleet.Roll(fleet.Peripheral{Category: string(c), Power: string(hal.PowerOnline), Said: fleet.Light{Health: fleet.HealthOK}}, false, false)
		if l.Health != string(agent.Health) || l.Reason != agent.Reason {
			t.Errorf("%s without sensors: got %s %s, and the agent says %s %s", c, l.Health, l.Reason, agent.Health, agent.Reason)
		}
	}
}

func TestWorst(t *testing.T) {
	of := func(healths ...string) (all []fleet.Peripheral) {
		for _, h := range healths {
			all = append(all, fleet.Peripheral{Light: fleet.Light{Health: h}})
		}
		return all
	}
	for want, all := range map[string][]fleet.Peripheral{
		"OK": of("OK", "OK"), "Unknown": of("OK", "Unknown"), "Attention": of("Unknown", "Attention", "OK"), "Offline": of("Attention", "Offline"), "Fault": of("Fault", "Offline"),
	} {
		if got := fleet.Worst(all); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	if got := fleet.Worst(nil); got != "Unknown" {
		t.Errorf("a till without peripherals: got %s, want Unknown", got)
	}
}

func TestDurations(t *testing.T) {
	at := func(h float64) time.Time {
		return time.Date(2026, 3, 2, 0, 0, 0, 0, time.UTC).Add(time.Duration(h * float64(time.Hour)))
	}
	span := func(what string, from, to float64) fleet.Span {
		h, r, _ := strings.Cut(what, " ")
		s := fleet.Span{Health: h, Reason: r, From: at(from)}
		if to >= 0 {
			s.To = at(to)
		}
		return s
	}
	const ok, open, lost = "OK ", "Fault COVER_OPEN", "Unknown M_TILL_OFFLINE"
	for _, c := range []struct {
		name        string
		spans, lost []fleet.Span
		want        string
	}{
		{"nothing known", nil, nil, ""},
		{"only now", []fleet.Span{span(ok, 30, -1)}, nil, "OK  18h0m0s 1"},
		{"three, of which one before the window", []fleet.Span{span(ok, 40, -1), span(open, 36, 40), span(ok, 2, 36), span(open, 1, 2)}, nil, "OK  20h0m0s 2, Fault COVER_OPEN 4h0m0s 1"},
		{"still lost", []fleet.Span{span(ok, 2, -1)}, []fleet.Span{span(lost, 40, -1)}, "OK  16h0m0s 1, Unknown M_TILL_OFFLINE 8h0m0s 1"},
		{"lost in between", []fleet.Span{span(ok, 2, -1)}, []fleet.Span{span(lost, 40, 44), span(lost, 30, 31)}, "OK  19h0m0s 1, Unknown M_TILL_OFFLINE 5h0m0s 2"},
		{"changed while lost", []fleet.Span{span(ok, 43, -1), span(open, 26, 43)}, []fleet.Span{span(lost, 40, 44)}, "Fault COVER_OPEN 14h0m0s 1, OK  4h0m0s 1, Unknown M_TILL_OFFLINE 4h0m0s 1"},
		{"lost all the time", []fleet.Span{span(ok, 2, -1)}, []fleet.Span{span(lost, 10, -1)}, "Unknown M_TILL_OFFLINE 24h0m0s 1"},
		{"long over", []fleet.Span{span(ok, 2, 20)}, []fleet.Span{span(lost, 3, 4)}, ""},
	} {
		var got []string
		sum := time.Duration(0)
		for _, d := range fleet.Durations(c.spans, c.lost, at(24), at(48)) {
			got = append(got, strings.Join([]string{d.Health, d.Reason, d.Time.String(), string(rune('0' + d.Times))}, " "))
			sum += d.Time
		}
		if s := strings.Join(got, ", "); s != c.want {
			t.Errorf("%s: got %s, want %s", c.name, s, c.want)
		}
		if sum > 24*time.Hour {
			t.Errorf("%s: a day has %s", c.name, sum)
		}
	}
}
