package firmware_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/tillward/tillward/simulator/firmware"
)

// TestQMP reads what a QEMU says: its greeting, answers and events.
func TestQMP(t *testing.T) {
	const said = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}}, "capabilities": ["oob"]}}
{"return": {}, "id": 1}
{"timestamp": {"seconds": 1795744800, "microseconds": 250000}, "event": "RESUME"}
{"timestamp": {"seconds": 1795744801, "microseconds": 1}, "event": "WATCHDOG", "data": {"action": "reset"}}
{"timestamp": {"seconds": 1795744801, "microseconds": 2}, "event": "RESET", "data": {"guest": true, "reason": "guest-reset"}}
{"error": {"class": "GenericError", "desc": "no"}, "id": 2}
{"error": {"class": "GenericError", "desc": "of nothing that was asked"}}
`
	var got []string
	err := firmware.ReadQMP(strings.NewReader(said), func(id int, err error) {
		got = append(got, fmt.Sprint(id, " ", err))
	}, func(e firmware.Event) {
		got = append(got, strings.Join([]string{e.Name, e.Reason, e.Action, e.Time.UTC().Format("05.000000")}, " "))
	})
	want := []string{
		"1 <nil>", "RESUME   00.250000", "WATCHDOG  reset 01.000001", "RESET guest-reset  01.000002",
		"2 QEMU says GenericError: no",
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %q, %v\nwant %q", got, err, want)
	}
	for _, broken := range []string{"{", "[]\n", strings.Repeat(" ", 2<<20)} {
		if err := firmware.ReadQMP(strings.NewReader(broken), func(int, error) {}, func(firmware.Event) {}); err == nil {
			t.Errorf("%.10q...: got no error", broken)
		}
	}
}

func FuzzQMP(f *testing.F) {
	f.Add(`{"return": {}, "id": 1}` + "\n" + `{"event": "RESET", "data": {"guest": true}}`)
	f.Add(`{"id": 4, "error": {"class": "x"}}` + "\n{")
	f.Fuzz(func(t *testing.T, said string) {
		lines := strings.Count(said, "\n") + 1
		calls := 0
		_ = firmware.ReadQMP(strings.NewReader(said), func(int, error) { calls++ }, func(e firmware.Event) {
			calls++
			if e.Name == "" {
				t.Error("an event without a name")
			}
		})
		if calls > lines {
			t.Errorf("%d calls for %d lines", calls, lines)
		}
	})
}

// TestObservation reads what the observer said, and refuses less.
func TestObservation(t *testing.T) {
	const good = "\x1b[2JBdsDxe: starting\r\nOBSERVE LOG\nAQID\nBAUG\nOBSERVE PCRS\n0 0A0b\n11 ff\nOBSERVE END\n[ 8.2] reboot: Power down"
	o, err := firmware.ReadObservation(good)
	if err != nil || string(o.Log) != "\x01\x02\x03\x04\x05\x06" || string(o.PCRs[0]) != "\x0a\x0b" || string(o.PCRs[11]) != "\xff" {
		t.Errorf("got %+v, %v", o, err)
	}
	for name, bad := range map[string]string{
		"nothing":           "",
		"no end":            strings.Split(good, "OBSERVE END")[0],
		"no log":            strings.Replace(good, "AQID\nBAUG\n", "", 1),
		"a log cut off":     strings.Replace(good, "BAUG", "BAU", 1),
		"a PCR of no value": strings.Replace(good, "11 ff", "11 ", 1),
		"a PCR of no sense": strings.Replace(good, "11 ff", "11 zz", 1),
	} {
		if _, err := firmware.ReadObservation(bad); err == nil {
			t.Errorf("%s: got no error", name)
		}
	}
}
