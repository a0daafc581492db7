package emulator

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

// The faults that only a printer has which polls.
const (
	WrongMAC    Fault = "polls with another's address"
	NoFrame     Fault = "polls with a status code only"
	LosesResult Fault = "never says what became of a job"
	RunsOut     Fault = "runs out of paper at each job"
)

// CloudConfig is what is set up on a printer that polls.
type CloudConfig struct {
	URL      string
	MAC      string
	User     string
	Password string
	Every    time.Duration // polling time; it also polls when something changes
	Media    string        // what it can print; empty: application/vnd.star.line
}

// CloudStar is a Star printer that polls a server for work [CloudPRNT 2.4.0,
// version HTTP]. It prints as a Star does and has the same faults; with Mute
// or Unplugged it does not come at all, with Garbage it sends what is no poll.
type CloudStar struct {
	*Star
	cfg    CloudConfig
	client *http.Client
	stop   context.CancelFunc
	polls  sync.WaitGroup
	wake   chan struct{}

	mu      sync.Mutex
	actions []map[string]string // answers that the next poll carries
	scans   []string
	refused []int // HTTP codes other than 200
	asked   []string
}

// NewCloudStar makes a printer that begins to poll at once.
func NewCloudStar(cfg CloudConfig) (*CloudStar, error) {
	p, err := NewStar("", StarModel{Status: true})
	if err != nil {
		return nil, err
	}
	if cfg.Media == "" {
		cfg.Media = "application/vnd.star.line"
	}
	ctx, cancel := context.WithCancel(context.Background())
	c := &CloudStar{
		Star: p, cfg: cfg, stop: cancel, wake: make(chan struct{}, 1),
		client: &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{MaxIdleConns: 1, IdleConnTimeout: 5 * time.Second}},
	}
	p.mu.Lock()
	p.onChange = c.soon
	p.mu.Unlock()
	c.polls.Go(func() { c.run(ctx) })
	return c, nil
}

// Close ends it and waits.
func (c *CloudStar) Close() error {
	c.stop()
	c.polls.Wait()
	c.client.CloseIdleConnections()
	return c.Star.Close()
}

// Scan lets a barcode scanner at the printer read something.
func (c *CloudStar) Scan(text string) {
	c.mu.Lock()
	c.scans = append(c.scans, text)
	c.mu.Unlock()
	c.soon()
}

// Refused returns the HTTP codes other than 200 that it was answered with.
func (c *CloudStar) Refused() []int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]int(nil), c.refused...)
}

// Asked returns the client actions that it was asked for.
func (c *CloudStar) Asked() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]string(nil), c.asked...)
}

func (c *CloudStar) soon() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func (c *CloudStar) run(ctx context.Context) {
	for ctx.Err() == nil {
		if !c.Has(Mute) && !c.Has(Unplugged) {
			c.poll(ctx)
		}
		wait := time.NewTimer(c.cfg.Every)
		select {
		case <-ctx.Done():
		case <-wait.C:
		case <-c.wake:
		}
		wait.Stop()
	}
}

// do sends a request and returns the code and the body of the answer.
func (c *CloudStar) do(ctx context.Context, method, query string, body []byte) (int, []byte) {
	r, err := http.NewRequestWithContext(ctx, method, c.cfg.URL+query, bytes.NewReader(body))
	if err != nil {
		return 0, nil
	}
	if c.cfg.User != "" {
		r.SetBasicAuth(c.cfg.User, c.cfg.Password)
	}
	r.Header.Set("User-Agent", "Star mC-Print3 (emulated)")
	resp, err := c.client.Do(r)
	if err != nil {
		return 0, nil
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 4<<20))
	if err != nil {
		return 0, nil
	}
	if resp.StatusCode != http.StatusOK {
		c.mu.Lock()
		c.refused = append(c.refused, resp.StatusCode)
		c.mu.Unlock()
	}
	return resp.StatusCode, b
}

// poll tells how the printer is, and does what it is answered.
func (c *CloudStar) poll(ctx context.Context) {
	code, b := c.do(ctx, http.MethodPost, "/", c.message())
	var answer struct {
		JobReady     bool     `json:"jobReady"`
		MediaTypes   []string `json:"mediaTypes"`
		JobToken     string   `json:"jobToken"`
		ClientAction []struct {
			Request string `json:"request"`
		} `json:"clientAction"`
	}
	if code != http.StatusOK || json.Unmarshal(b, &answer) != nil {
		return
	}
	for _, a := range answer.ClientAction {
		result, ok := map[string]string{"ClientType": "Star mC-Print3", "ClientVersion": "3.5", "GetPollInterval": fmt.Sprint(max(1, int(c.cfg.Every.Seconds())))}[a.Request]
		c.mu.Lock()
		c.asked = append(c.asked, a.Request)
		if ok {
			c.actions = append(c.actions, map[string]string{"request": a.Request, "result": result})
		}
		c.mu.Unlock()
		c.soon()
	}
	if answer.JobReady && len(answer.MediaTypes) > 0 && !c.offline() {
		c.fetch(ctx, answer.MediaTypes[0], answer.JobToken)
	}
}

func (c *CloudStar) offline() bool {
	c.Star.mu.Lock()
	defer c.Star.mu.Unlock()
	return c.offlineLocked()
}

// code is the printer's own word for its state.
func (c *CloudStar) code() string {
	switch {
	case c.Has(CoverOpen):
		return "420 Cover Open"
	case c.Has(PaperEnd):
		return "410 Out of Paper"
	case c.Has(Mechanical):
		return "411 Paper Jam"
	case c.offline():
		return "400 Printer error"
	case c.Has(NearEnd):
		return "211 Paper Low"
	}
	return "200 OK"
}

func (c *CloudStar) mac() string {
	if c.Has(WrongMAC) {
		return "00:11:62:ff:ff:ff"
	}
	return c.cfg.MAC
}

func (c *CloudStar) message() []byte {
	if c.Has(Garbage) {
		return []byte(`{"statusCode": "200 OK", "printerMAC": "`)
	}
	m := map[string]any{"printerMAC": c.mac(), "statusCode": url.QueryEscape(c.code()), "uniqueID": nil, "printingInProgress": false}
	if !c.Has(NoFrame) {
		c.Star.mu.Lock()
		m["status"] = strings.ToUpper(fmt.Sprintf("% x", c.frameLocked()))
		c.etbDone, c.faults[Overflow] = false, false
		c.Star.mu.Unlock()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.actions) > 0 {
		m["clientAction"] = c.actions
		c.actions = nil
	}
	var scans []map[string]string
	for _, s := range c.scans {
		scans = append(scans, map[string]string{"data": s, "symbology": "Code128"})
	}
	c.scans = nil
	status := map[string]bool{"connected": true, "claimed": true}
	m["barcodeReader"] = []map[string]any{{"name": "scanner", "status": status, "scan": scans}}
	m["keyboard"] = []map[string]any{{"name": "keyboard", "status": status, "keyPresses": strings.Join(c.scanned(scans), "\n")}}
	b, err := json.Marshal(m)
	if err != nil {
		return nil
	}
	return b
}

func (c *CloudStar) scanned(scans []map[string]string) (out []string) {
	for _, s := range scans {
		out = append(out, s["data"])
	}
	return out
}

// fetch prints the job and says what became of it.
func (c *CloudStar) fetch(ctx context.Context, media, token string) {
	q := url.Values{"mac": {c.mac()}, "token": {token}}
	confirm := func(code string) {
		if c.Has(LosesResult) {
			return
		}
		q.Set("code", code)
		q.Del("type")
		c.do(ctx, http.MethodDelete, "/?"+q.Encode(), nil)
	}
	if media != c.cfg.Media {
		confirm("510 Incompatible media type")
		return
	}
	q.Set("type", media)
	code, body := c.do(ctx, http.MethodGet, "/?"+q.Encode(), nil)
	if code != http.StatusOK {
		confirm("520 Download error")
		return
	}
	if c.Has(RunsOut) {
		c.Set(PaperEnd, true)
	}
	if c.print(ctx, body) {
		confirm("200 OK")
	} else {
		confirm(c.code())
	}
}

// print obeys a job to its end; false when the printer has stopped.
func (c *CloudStar) print(ctx context.Context, body []byte) bool {
	var t starTokens
	p := c.Star
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, cmd := range t.feed(body) {
		if p.offlineLocked() || ctx.Err() != nil {
			return false
		}
		if !p.realtimeLocked(cmd) {
			p.commandLocked(cmd)
		}
	}
	return !p.offlineLocked()
}
