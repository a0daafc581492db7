package api_test

import (
	"encoding/xml"
	"fmt"
	"math"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

var since = time.Now().Add(-2 * time.Hour).Truncate(time.Millisecond)

// counter is what a till says of the four peripherals of its counter.
func counter() []fleet.Peripheral {
	said := func(p fleet.Peripheral, health, reason string) fleet.Peripheral {
		p.Said = fleet.Light{Health: health, Reason: reason, Since: since}
		return p
	}
	return []fleet.Peripheral{
		said(fleet.Peripheral{
			ID: "receipt", Category: "POSPrinter", Driver: "escpos", Maker: "Maker & Co", Model: "P1", Serial: "P-7", Firmware: "1.0", Claim: "own", Key: "usb:04b8:0e15:P-7",
			Interface: "USB", Caps: []string{"CapCoverSensor", "CapRecEmptySensor"}, RollLines: 18876, Power: "PS_ONLINE", Sensors: map[string]string{"CoverOpen": "Yes", "RecEmpty": "No"},
		}, "Fault", "COVER_OPEN"),
		said(fleet.Peripheral{ID: "drawer", Category: "CashDrawer", Power: "PS_ONLINE", Sensors: map[string]string{"DrawerOpened": "No"}}, "OK", ""),
		said(fleet.Peripheral{ID: "reader", Category: "SmartCardRW", Driver: "pcsc", Power: "PS_ONLINE", Sensors: map[string]string{"SCPresentSensor": "No"}}, "OK", ""),
		said(fleet.Peripheral{ID: "blind", Category: "POSPrinter", Driver: "escpos", Power: "PS_ONLINE", Sensors: map[string]string{"CoverOpen": "Unknown", "RecEmpty": "No"}}, "OK", ""),
	}
}

var said uint64 = 100

// says commits a report of a device, and connects it.
func (s *site) says(t *testing.T, id fleet.DeviceID, tenant fleet.TenantID, peripherals []fleet.Peripheral, more ...fleet.Intake) fleet.Outcome {
	t.Helper()
	said++
	now := time.Now()
	must(t, s.store.SetPresence(t.Context(), id, true, now))
	in := fleet.Intake{Device: id, Tenant: tenant, At: now, Report: &fleet.Report{Boot: [16]byte{7}, Seq: said, Sent: now, Peripherals: peripherals}}
	out, err := s.store.Commit(t.Context(), append([]fleet.Intake{in}, more...))
	must(t, err)
	return out[0]
}

type shown struct {
	ID, Health, Reason, Advice, Claim, Key, Interface string
	Device, Site                                      string
	Label                                             string `json:"device_label"`
	Since                                             time.Time
	Last                                              *struct{ Health, Reason string }
	Caps                                              []string
	RollLines                                         int `json:"roll_lines"`
	Paper, Reads                                      *object
}

func (s *site) list(t *testing.T, query string) (ids []string, all []shown) {
	t.Helper()
	page := into[struct{ Items []shown }](t, s.as(t, fleet.Viewer, "GET", "/v1/peripherals"+query, nil))
	for _, p := range page.Items {
		ids = append(ids, p.Device+"/"+p.ID)
	}
	return ids, page.Items
}

func TestPeripherals(t *testing.T) {
	s := newSite(t)
	label := "Lane 1"
	must(t, s.store.SetDevice(t.Context(), "main", "d1", fleet.DevicePatch{Label: &label}, fleet.AuditEvent{Kind: "device.set"}))
	s.says(t, "d1", "main", counter())
	s.says(t, "d3", "main", counter()[1:3])
	s.says(t, "x1", "other", counter())
	for query, want := range map[string]string{
		"":                                     "d1/blind d1/drawer d1/reader d1/receipt d3/drawer d3/reader",
		"?health=Fault":                        "d1/receipt",
		"?health=OK":                           "d1/drawer d1/reader d3/drawer d3/reader",
		"?health=Unknown":                      "d1/blind", // whatever its till says
		"?health=Offline":                      "",
		"?reason=COVER_OPEN":                   "d1/receipt",
		"?category=SmartCardRW":                "d1/reader d3/reader",
		"?site=paris":                          "d3/drawer d3/reader",
		"?q=lane&health=OK":                    "d1/drawer d1/reader",
		"?q=P-7":                               "d1/receipt",
		"?reason=M_TILL_OFFLINE":               "",
		"?run_out_before=2100-01-01T00:00:00Z": "",
	} {
		if got, _ := s.list(t, query); strings.Join(got, " ") != want {
			t.Errorf("%s: got %s, want %s", query, got, want)
		}
	}
	_, all := s.list(t, "?health=Fault")
	p := all[0]
	if p.Label != "Lane 1" || p.Site != "berlin" || p.Claim != "own" || p.Key != "usb:04b8:0e15:P-7" || p.Interface != "USB" || len(p.Caps) != 2 || p.RollLines != 18876 ||
		!p.Since.Equal(since) || p.Advice != "Close the printer's cover." || p.Paper != nil || p.Last != nil {
		t.Errorf("got %+v", p)
	}

	must(t, s.store.SetPresence(t.Context(), "d1", false, time.Now()))
	_, all = s.list(t, "?reason=M_TILL_OFFLINE")
	if len(all) != 4 {
		t.Fatalf("of the till that is lost: got %+v, want all four", all)
	}
	for _, p := range all {
		if p.Device != "d1" || p.Health != "Unknown" || p.Last == nil || p.Last.Health == "" || time.Since(p.Since) > time.Hour || p.Advice == "" {
			t.Errorf("got %+v, want Unknown since a moment ago, and how it was", p)
		}
	}
	if got, _ := s.list(t, "?health=Fault"); len(got) != 0 {
		t.Errorf("got %v, want no fault that nobody can see", got)
	}
	if got := into[object](t, s.as(t, fleet.Viewer, "GET", "/v1/devices/d1", nil)); got["health"] != "Unknown" {
		t.Errorf("a till that is lost: got health %v, want Unknown", got["health"])
	}
}

// TestPeripheralPages reads the list one item at a time.
func TestPeripheralPages(t *testing.T) {
	s := newSite(t)
	s.says(t, "d1", "main", counter())
	s.says(t, "d3", "main", counter())
	var got []string
	for after := ""; ; {
		page, next := items(t, s.as(t, fleet.Viewer, "GET", "/v1/peripherals?limit=1&after="+after, nil))
		for _, p := range page {
			got = append(got, fmt.Sprintf("%v/%v", p["device"], p["id"]))
		}
		if after = strings.ReplaceAll(next, "/", "%2F"); next == "" {
			break
		}
	}
	if len(got) != 8 || !slices.IsSorted(got) || len(slices.Compact(got)) != 8 {
		t.Errorf("got %v, want each of eight once", got)
	}
	problem(t, s.as(t, fleet.Viewer, "GET", "/v1/peripherals?after=x", nil), http.StatusUnprocessableEntity)
	problem(t, s.as(t, fleet.Viewer, "GET", "/v1/peripherals?health=Fine", nil), http.StatusUnprocessableEntity)
}

func TestPeripheral(t *testing.T) {
	s := newSite(t)
	now := time.Now()
	s.says(t, "d1", "main", counter(), fleet.Intake{Device: "d1", Tenant: "main", At: now, Checks: []fleet.HealthCheck{{
		Boot: [16]byte{7}, Seq: 1, At: now, Peripheral: "receipt", Level: "external", Steps: []fleet.CheckStep{{ID: "page", Code: "COVER_OPEN", MS: 900}},
	}}})
	closed := counter()
	closed[0].Said, closed[0].Sensors = fleet.Light{Health: "OK", Since: now.Add(-30 * time.Minute)}, map[string]string{"CoverOpen": "No", "RecEmpty": "No"}
	s.says(t, "d1", "main", closed)
	p := into[struct {
		shown
		Window    string
		Durations []struct {
			Health, Reason string
			Seconds        float64
			Times          int
		}
		Spans []struct {
			Health, Reason string
			From, To       *time.Time
		}
		Lost   []object
		Checks []struct {
			Level string
			OK    bool
			Steps []object
		}
	}](t, s.as(t, fleet.Viewer, "GET", "/v1/devices/d1/peripherals/receipt", nil))
	if p.Health != "OK" || p.Reason != "" || p.Advice != "" || p.Window != "24h" || p.Device != "d1" {
		t.Errorf("got %+v", p)
	}
	if len(p.Spans) != 2 || p.Spans[0].Health != "OK" || p.Spans[0].To != nil || p.Spans[1].Reason != "COVER_OPEN" || !p.Spans[1].From.Equal(since) {
		t.Errorf("spans: got %+v", p.Spans)
	}
	open := now.Add(-30 * time.Minute).Sub(since) // since is as of the start of all tests
	if len(p.Durations) != 2 || p.Durations[0].Health != "Fault" || p.Durations[0].Times != 1 || math.Abs(p.Durations[0].Seconds-open.Seconds()) > 1 ||
		p.Durations[1].Health != "OK" || p.Durations[1].Seconds < 1799 {
		t.Errorf("durations: got %+v, want a cover that was open for %s", p.Durations, open)
	}
	if len(p.Checks) != 1 || p.Checks[0].Level != "external" || p.Checks[0].OK || p.Checks[0].Steps[0]["code"] != "COVER_OPEN" {
		t.Errorf("checks: got %+v", p.Checks)
	}
	problem(t, s.as(t, fleet.Viewer, "GET", "/v1/devices/d1/peripherals/toaster", nil), http.StatusNotFound)
	problem(t, s.as(t, fleet.Viewer, "GET", "/v1/devices/d1/peripherals/receipt?window=1y", nil), http.StatusUnprocessableEntity)
}

// TestStatisticsXML compares with testdata/uposstat.xml, which is read by hand.
func TestStatisticsXML(t *testing.T) {
	s := newSite(t)
	sample := func(n int, peripheral, name string, v float64) fleet.Sample {
		return fleet.Sample{Boot: [16]byte{7}, Seq: 2, Index: n, At: since, Peripheral: peripheral, Name: name, Value: v}
	}
	s.says(t, "d1", "main", counter(), fleet.Intake{Device: "d1", Tenant: "main", At: time.Now(), Samples: []fleet.Sample{
		sample(0, "receipt", "ReceiptLineFeedCount", 12345), sample(1, "receipt", "PaperCutCount", 67), sample(2, "receipt", "M_PaperEmptyCount", 2),
		sample(3, "receipt", "HoursPoweredCount", 1.5), sample(4, "reader", "M_CardInsertedCount", 9), sample(5, "receipt", "temp_mc", 41250),
	}})
	r := s.as(t, fleet.Viewer, "GET", "/v1/devices/d1/peripherals/receipt/statistics.xml", nil)
	if ct := r.header.Get("Content-Type"); r.status != http.StatusOK || !strings.HasPrefix(ct, "application/xml") {
		t.Fatalf("got %s as %s", r, ct)
	}
	got := strings.ReplaceAll(string(r.body), time.Now().UTC().Format(time.DateOnly), "TODAY")
	want, err := os.ReadFile("testdata/uposstat.xml")
	must(t, err)
	if got != string(want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	var doc struct {
		XMLName xml.Name
		Event   struct {
			Parameter []struct{ Name, Value string }
		}
	}
	if err := xml.Unmarshal(r.body, &doc); err != nil || doc.XMLName.Local != "UPOSStat" || len(doc.Event.Parameter) != 23 {
		t.Errorf("got %+v, %v, want 23 statistics of a printer", doc, err)
	}
	reader := string(s.as(t, fleet.Viewer, "GET", "/v1/devices/d1/peripherals/reader/statistics.xml", nil).body)
	if !strings.Contains(reader, "<Name>M_CardInsertedCount</Name>\n      <Value>9</Value>") || !strings.Contains(reader, "<Value></Value>") {
		t.Errorf("got %s", reader)
	}
}
