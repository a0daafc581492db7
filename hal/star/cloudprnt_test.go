package star_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/hal/haltest"
	"github.com/tillward/tillward/hal/star"
	"github.com/tillward/tillward/simulator/emulator"
)

const mac = "00:11:62:0a:0b:0c"

// listen opens an endpoint and returns where it is.
func listen(t *testing.T, claim hal.Claim, pairs ...string) (hal.Device, string) {
	t.Helper()
	return listenAt(t, "127.0.0.1:0", claim, pairs...)
}

func listenAt(t *testing.T, address string, claim hal.Claim, pairs ...string) (hal.Device, string) {
	t.Helper()
	cfg := hal.Config{ID: "kitchen", Address: address, Claim: claim, Options: map[string]string{"mac": mac, "poll": "400ms"}}
	for i := 0; i < len(pairs); i += 2 {
		cfg.Options[pairs[i]] = pairs[i+1]
	}
	d, err := star.CloudPRNT{}.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d, strings.TrimSuffix(strings.TrimPrefix(d.String(), "cloudprnt("), ")")
}

func poller(t *testing.T, at string, change ...func(*emulator.CloudConfig)) *emulator.CloudStar {
	t.Helper()
	cfg := emulator.CloudConfig{URL: "http://" + at, MAC: strings.ToUpper(mac), Every: 50 * time.Millisecond}
	for _, c := range change {
		c(&cfg)
	}
	p, err := emulator.NewCloudStar(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if u := p.Unknown(); len(u) > 0 {
			t.Errorf("the driver sent commands that the printer does not know: %v", u)
		}
		_ = p.Close()
	})
	return p
}

// free returns an address that nobody listens on, and where nobody comes from
// meanwhile: each has a host of its own.
func free(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", fmt.Sprintf("127.%d.%d.%d:0", 1+rand.IntN(250), rand.IntN(255), 1+rand.IntN(254)))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestCloudConformance(t *testing.T) {
	for _, frames := range []bool{true, false} {
		t.Run(map[bool]string{true: "with frames", false: "with codes alone"}[frames], func(t *testing.T) {
			haltest.Run(t, func(t *testing.T) haltest.Bench {
				at := free(t)
				p := poller(t, at)
				p.Set(emulator.NoFrame, !frames)
				fault := func(f emulator.Fault) func(bool) { return func(on bool) { p.Set(f, on) } }
				b := haltest.Bench{
					Apart: true,
					Open: func(t *testing.T) hal.Device {
						d, _ := listenAt(t, at, hal.Own)
						return d
					},
					Faults: []haltest.Fault{
						{Name: "cover", Set: fault(emulator.CoverOpen), Sensor: "CoverOpen", On: "COVER_OPEN", Off: "COVER_OK"},
						{Name: "paper low", Set: fault(emulator.NearEnd), Sensor: "RecNearEnd", On: "REC_NEAREMPTY", Off: "REC_PAPEROK"},
						{Name: "paper out", Set: fault(emulator.PaperEnd), Sensor: "RecEmpty", On: "REC_EMPTY", Off: "REC_PAPEROK"},
						{Name: "jam", Set: fault(emulator.Mechanical), Sensor: "M_MechanicalError", On: "M_MECHANICAL_ERROR", Off: "M_MECHANICAL_OK"},
						{Name: "off-line", Set: fault(emulator.Offline), On: "POWER_OFFLINE", Off: "POWER_ONLINE"},
					},
					Unplug: fault(emulator.Unplugged),
					Mute:   fault(emulator.Mute),
					Noise:  fault(emulator.Garbage),
					Blind: func(t *testing.T) hal.Device { // no printer comes
						d, _ := listen(t, hal.Own)
						return d
					},
					Unseen:        []string{"CoverOpen", "RecEmpty", "RecNearEnd", "M_CutterError"},
					NotApplicable: map[int]string{7: "the printer comes to the driver; nothing of it is opened"},
					Output:        p.Output,
					Feed: func(t *testing.T, d hal.Device, number string) {
						p.Scan(number)
						if _, err := d.(hal.Passthrough).Print(t.Context(), strings.NewReader("Card "+number+"\n\x1bd3")); err != nil {
							t.Errorf("print: %v", err)
						}
					},
				}
				if frames {
					b.Faults = append(b.Faults,
						haltest.Fault{Name: "cutter", Set: fault(emulator.CutterJam), Sensor: "M_CutterError", On: "M_CUTTER_ERROR", Off: "M_CUTTER_OK"},
						haltest.Fault{Name: "head", Set: fault(emulator.HeadHot), Sensor: "M_HeadTooHot", On: "M_HEAD_TOO_HOT", Off: "M_HEAD_OK"},
					)
				}
				for i := range b.Faults {
					b.Faults[i].Alone = !frames // a code names one
				}
				return b
			})
		})
	}
}

func TestCloudPrint(t *testing.T) {
	d, at := listen(t, hal.Own)
	p := poller(t, at)
	status(t, d, healthy)
	printer := d.(hal.Passthrough)
	job, err := printer.Print(t.Context(), strings.NewReader("Soup\n\x07\x1bd3"))
	if err != nil || !job.Confirmed || job.Cuts != 1 || job.Kicks != 1 || job.Bytes != 9 {
		t.Errorf("got %+v, %v; want one that the printer confirms", job, err)
	}
	if jobs := p.Jobs(); !slices.Equal(jobs, []string{"Soup\n"}) {
		t.Errorf("printed %q", jobs)
	}
	if l, n := value(t, d, "ReceiptLineFeedCount"), value(t, d, "PaperCutCount"); l != 1 || n != 1 {
		t.Errorf("counted %v lines and %v cuts, want 1 and 1", l, n)
	}
	p.Set(emulator.RunsOut, true)
	if job, err := printer.Print(t.Context(), strings.NewReader("Bread\n\x1bd3")); job.Confirmed || !errors.Is(err, &hal.Error{Code: "E_OFFLINE"}) || !strings.Contains(err.Error(), "REC_EMPTY") {
		t.Errorf("paper ran out: got %+v, %v; want E_OFFLINE with REC_EMPTY", job, err)
	}
	status(t, d, func(s hal.Status) bool { return s.Reason == "REC_EMPTY" })
	if _, err := printer.Print(t.Context(), strings.NewReader("x\n")); !errors.Is(err, &hal.Error{Code: "E_OFFLINE"}) {
		t.Errorf("without paper: got %v, want E_OFFLINE", err)
	}
	p.Set(emulator.RunsOut, false)
	p.Set(emulator.PaperEnd, false)
	status(t, d, healthy)
	if r, err := d.(hal.HealthChecker).CheckHealth(t.Context(), hal.External); err != nil || !r.OK || len(r.Checks) != 1 {
		t.Errorf("test page: %+v, %v", r, err)
	}
	if jobs := p.Jobs(); len(jobs) != 2 || !strings.Contains(jobs[1], "Tillward test page") {
		t.Errorf("printed %q; want no page that was refused before", jobs)
	}
	if _, err := printer.Print(t.Context(), strings.NewReader(strings.Repeat("x", 1<<20+1))); !errors.Is(err, &hal.Error{Code: "E_ILLEGAL"}) {
		t.Errorf("a job that is too large: got %v, want E_ILLEGAL", err)
	}
}

// A job is withdrawn with the context: it must not come out later.
func TestCloudPrintIsWithdrawn(t *testing.T) {
	d, at := listen(t, hal.Own, "poll", "1m")
	p := poller(t, at, func(c *emulator.CloudConfig) { c.Every = time.Hour })
	status(t, d, healthy)
	p.Set(emulator.LosesResult, true)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if job, err := d.(hal.Passthrough).Print(ctx, strings.NewReader("late\n\x1bd3")); job.Confirmed || !errors.Is(err, &hal.Error{Code: "E_TIMEOUT"}) {
		t.Errorf("got %+v, %v; want E_TIMEOUT", job, err)
	}
	r, err := http.Get("http://" + at + "/?type=application/vnd.star.line&mac=" + mac)
	if err != nil {
		t.Fatal(err)
	}
	_ = r.Body.Close()
	if r.StatusCode != http.StatusNotFound {
		t.Errorf("after that the job is still there: %s", r.Status)
	}
}

func TestCloudObserveOffersNothing(t *testing.T) {
	d, at := listen(t, hal.Observe)
	poller(t, at)
	status(t, d, healthy)
	if _, err := d.(hal.Passthrough).Print(t.Context(), strings.NewReader("x\n")); !errors.Is(err, &hal.Error{Code: "E_ILLEGAL"}) {
		t.Errorf("got %v, want E_ILLEGAL", err)
	}
}

func TestCloudIdentity(t *testing.T) {
	d, at := listen(t, hal.Own)
	p := poller(t, at)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for d.Info().Firmware == "" && ctx.Err() == nil {
		status(t, d, healthy)
	}
	if i := d.Info(); i.Model != "mC-Print3" || i.Firmware != "3.5" || i.Key != "cloudprnt:"+mac || i.Interface != "Ethernet" {
		t.Errorf("got %+v", i)
	}
	if a := p.Asked(); len(a) > 9 || !slices.Contains(a, "GetPollInterval") {
		t.Errorf("asked %q, want each once or a little more", a)
	}
}

// Without a word of the configuration the printer's own polling time tells when
// it is overdue.
func TestCloudLearnsThePollingTime(t *testing.T) {
	t.Parallel() // it waits for what does not come
	d, err := star.CloudPRNT{}.Open(t.Context(), hal.Config{ID: "kitchen", Address: "127.0.0.1:0", Options: map[string]string{"mac": mac}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	p := poller(t, strings.TrimSuffix(strings.TrimPrefix(d.String(), "cloudprnt("), ")"))
	waitFor(t, "the model", func() bool { return d.Info().Model != "" })
	p.Set(emulator.Unplugged, true)
	status(t, d, func(s hal.Status) bool { return s.Power == hal.PowerOffOffline }) // 4 s, and not the 17 s of the default
}

// What is read at the printer is counted, and nothing else.
func TestCloudScansAreDropped(t *testing.T) {
	d, at := listen(t, hal.Own)
	p := poller(t, at)
	status(t, d, healthy)
	p.Scan("4111111111111111")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for value(t, d, "M_InputDroppedCount") < 2 { // at the scanner, and as keys
		if ctx.Err() != nil {
			t.Fatalf("counted %v", value(t, d, "M_InputDroppedCount"))
		}
		status(t, d, healthy)
	}
}

// Must fail: whoever is not the printer, or does not log on.
func TestCloudRefuses(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	basic, atBasic := listen(t, hal.Own, "user", "till", "password_file", secret)
	token, atToken := listen(t, hal.Own, "token_file", secret)
	open, atOpen := listen(t, hal.Own)
	poll := `{"statusCode":"200 OK","printerMAC":"` + mac + `"}`
	for _, test := range []struct {
		name           string
		d              hal.Device
		at             string
		user, password string
		method, query  string
		body           string
		want           int
	}{
		{"good", basic, atBasic, "till", "s3cret", "POST", "", poll, 200},
		{"wrong password", basic, atBasic, "till", "S3cret", "POST", "", poll, 401},
		{"wrong user", basic, atBasic, "kasse", "s3cret", "POST", "", poll, 401},
		{"no user", basic, atBasic, "", "", "POST", "", poll, 401},
		{"any user with the token", token, atToken, "anybody", "s3cret", "POST", "", poll, 200},
		{"wrong token", token, atToken, "anybody", "x", "POST", "", poll, 401},
		{"job without logging on", token, atToken, "", "", "GET", "?type=application/vnd.star.line&mac=" + mac, "", 401},
		{"another printer", open, atOpen, "", "", "POST", "", `{"statusCode":"200 OK","printerMAC":"00:11:62:00:00:01"}`, 403},
		{"no printer", open, atOpen, "", "", "POST", "", `{"statusCode":"200 OK"}`, 403},
		{"another printer's job", open, atOpen, "", "", "GET", "?type=application/vnd.star.line&mac=00:11:62:00:00:01", "", 403},
		{"another printer's word", open, atOpen, "", "", "DELETE", "?code=200&mac=00:11:62:00:00:01", "", 403},
		{"no job", open, atOpen, "", "", "GET", "?type=application/vnd.star.line&mac=" + mac, "", 404},
		{"is there MQTT", open, atOpen, "", "", "GET", "", "", 404},
		{"another method", open, atOpen, "", "", "PUT", "", poll, 405},
		{"no JSON", open, atOpen, "", "", "POST", "", `statusCode=200`, 400},
		{"no code", open, atOpen, "", "", "POST", "", `{"printerMAC":"` + mac + `"}`, 400},
		{"too much", open, atOpen, "", "", "POST", "", `{"statusCode":"200 ` + strings.Repeat("x", 70000) + `","printerMAC":"` + mac + `"}`, 400},
	} {
		t.Run(test.name, func(t *testing.T) {
			r, err := http.NewRequestWithContext(t.Context(), test.method, "http://"+test.at+"/"+test.query, strings.NewReader(test.body))
			if err != nil {
				t.Fatal(err)
			}
			if test.user != "" {
				r.SetBasicAuth(test.user, test.password)
			}
			resp, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
			if resp.StatusCode != test.want {
				t.Errorf("got %s, want %d", resp.Status, test.want)
			}
		})
	}
	http.DefaultClient.CloseIdleConnections()
	if n := value(t, open, "M_UnknownPrinterCount"); n != 4 {
		t.Errorf("counted %v strangers, want 4", n)
	}
	if b, k := value(t, basic, "M_RefusedCount"), value(t, token, "M_RefusedCount"); b != 3 || k != 2 {
		t.Errorf("counted %v and %v refusals, want 3 and 2", b, k)
	}
	if n := value(t, open, "CommunicationErrorCount"); n != 3 {
		t.Errorf("counted %v errors, want 3", n)
	}
}

// Must fail: a stranger who holds every connection that he gets. The printer
// gets through all the same.
func TestCloudStrangerKeepsNobodyOut(t *testing.T) {
	d, at := listen(t, hal.Own)
	stranger := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	for range 20 {
		c, err := stranger.DialContext(t.Context(), "tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, _ = io.WriteString(c, "POST / HTTP/1.1\r\nHost: x\r\n")
	}
	waitFor(t, "the crowd", func() bool { return value(t, d, "M_RefusedCount") > 0 })
	poller(t, at)
	status(t, d, healthy)
}

// Must fail: somebody who asks without an end. He has to wait, so that the box
// has time for the till.
func TestCloudFlood(t *testing.T) {
	_, at := listen(t, hal.Own)
	c, err := net.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const requests = 230
	go func() { _, _ = io.WriteString(c, strings.Repeat("GET / HTTP/1.1\r\nHost: x\r\n\r\n", requests)) }()
	r := bufio.NewReader(c)
	began := time.Now()
	for range requests {
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
	}
	if d := time.Since(began); d < 300*time.Millisecond {
		t.Errorf("%d questions were answered in %s", requests, d)
	}
}

// Must fail: more clients than printers could be.
func TestCloudHangsUpOnACrowd(t *testing.T) {
	d, at := listen(t, hal.Own)
	for range 20 {
		conn, err := net.Dial("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for value(t, d, "M_RefusedCount") < 12 {
		if ctx.Err() != nil {
			t.Fatalf("refused %v of 20 clients, want 12", value(t, d, "M_RefusedCount"))
		}
	}
}

func TestReadPoll(t *testing.T) {
	for _, test := range []struct {
		body   string
		power  hal.Power
		sensor string
	}{
		{`{"statusCode":"200%20OK","status":"23 86 00 00 00 00 00 00 00 00 00"}`, hal.PowerOnline, ""},
		{`{"statusCode":"200 OK","status":"23 6 0 0 0 4 0 0 0 "}`, hal.PowerOnline, "RecNearEnd"},
		{`{"statusCode":"410 Out of paper","status":"2386080000080000000000"}`, hal.PowerOffline, "RecEmpty"},
		{`{"statusCode":"420","status":null}`, hal.PowerOffline, "CoverOpen"},
		{`{"statusCode":"211 Paper low","clientAction":null,"barcodeReader":null}`, hal.PowerOnline, "RecNearEnd"},
		{`{"statusCode":"411 Jam","status":"zz"}`, hal.PowerOffline, "M_MechanicalError"},
		{`{"statusCode":"5031"}`, hal.PowerOffline, ""},
	} {
		power, sensors, _, ok := star.ReadPoll([]byte(test.body))
		if !ok || power != test.power {
			t.Errorf("%s: got %s, %v; want %s", test.body, power, ok, test.power)
		}
		for name, is := range sensors {
			if (is == hal.Yes) != (name == test.sensor) {
				t.Errorf("%s: %s is %v", test.body, name, is)
			}
		}
	}
}

// Whatever a printer sends, nothing of it comes out as text.
func FuzzReadPoll(f *testing.F) {
	f.Add([]byte(`{"statusCode":"200 OK","status":"23 86 0 0 0 0 0 0 0","barcodeReader":[{"scan":[{"data":"4111111111111111"}]}],"keyboard":[{"keyPresses":"1"}]}`))
	f.Add([]byte(`{"statusCode":"200","clientAction":[{"request":"ClientType","result":{"a":[1]}}]}`))
	f.Add([]byte(`{"statusCode":"99"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		power, sensors, n, ok := star.ReadPoll(b)
		if ok && power != hal.PowerOnline && power != hal.PowerOffline || n < 0 || n > len(b) {
			t.Errorf("%q: %s, %d", b, power, n)
		}
		for name := range sensors {
			if hal.MayHoldPAN(name) {
				t.Errorf("sensor %q", name)
			}
		}
	})
}
