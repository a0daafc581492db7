package star

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/tillward/tillward/hal"
)

// silent keeps what strangers send out of the log.
var silent = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)

// limited is a listener that hangs up on too many clients.
type limited struct {
	net.Listener
	clients chan struct{}
	track   *hal.Tracker

	mu    sync.Mutex
	hosts map[string]int // clients of each
}

// Accept implements net.Listener.
func (l *limited) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		host, _, _ := net.SplitHostPort(conn.RemoteAddr().String())
		if l.enter(host) {
			return &counted{Conn: conn, leave: sync.OnceFunc(func() { l.leave(host) })}, nil
		}
		l.track.Count("M_RefusedCount", 1)
		_ = conn.Close()
	}
}

func (l *limited) enter(host string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.hosts[host] >= maxOfHost {
		return false
	}
	select {
	case l.clients <- struct{}{}:
		l.hosts[host]++
		return true
	default:
		return false
	}
}

func (l *limited) leave(host string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	<-l.clients
	if l.hosts[host]--; l.hosts[host] == 0 {
		delete(l.hosts, host)
	}
}

type counted struct {
	net.Conn
	leave func()
}

// Close implements net.Conn.
func (c *counted) Close() error {
	c.leave()
	return c.Conn.Close()
}

// job is what the printer is offered.
type job struct {
	token   string
	body    []byte
	fetched time.Time
	done    chan string // the code that the printer confirms with
}

func (c *cloud) offer(b []byte) *job {
	j := &job{token: rand.Text(), body: b, done: make(chan string, 1)}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.job = j
	return j
}

// withdraw forgets the job, whatever became of it.
func (c *cloud) withdraw() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.job.body)
	c.job = nil
}

// good reports whether a printer's code says that the job came out.
func good(code string) bool { return strings.HasPrefix(code, "2") || code == "OK" }

// refused is the error behind a printer's code [CloudPRNT, Printer Status
// Codes]. What the printer writes behind the number is not passed on.
func refused(code string) error {
	n := number(code)
	kind, why := "E_FAILURE", "the printer could not print the job"
	switch n / 10 {
	case 41:
		kind, why = "E_OFFLINE", "REC_EMPTY: no paper, or it is jammed"
	case 42:
		kind, why = "E_OFFLINE", "COVER_OPEN: the cover is open"
	case 51:
		kind, why = "E_ILLEGAL", "the printer does not understand what the job is written in"
	case 52:
		why = "the printer could not fetch the job"
	}
	return &hal.Error{Code: kind, Op: "print", Err: fmt.Errorf("%s (code %d)", why, n)}
}

// number returns the digits that a code begins with, e.g. of 200 OK.
func number(code string) int {
	n := 0
	for _, c := range []byte(code[:min(len(code), 4)]) {
		if c < '0' || c > '9' {
			break
		}
		n = n*10 + int(c-'0')
	}
	return n
}

// poll is what the printer tells. Of what is plugged into it - scanners,
// keyboards, displays - nothing is read but how often something came.
type poll struct {
	Status       string `json:"status"`
	PrinterMAC   string `json:"printerMAC"`
	StatusCode   string `json:"statusCode"`
	ClientAction []struct {
		Request string          `json:"request"`
		Result  json.RawMessage `json:"result"`
	} `json:"clientAction"`
	BarcodeReader []struct {
		Scan []skipped `json:"scan"`
	} `json:"barcodeReader"`
	Keyboard []struct {
		KeyPresses pressed `json:"keyPresses"`
	} `json:"keyboard"`
}

// pressed is whether there was a text, which it never holds.
type pressed bool

// UnmarshalJSON implements json.Unmarshaler.
func (p *pressed) UnmarshalJSON(b []byte) error {
	*p = len(b) > 2 && b[0] == '"'
	return nil
}

// skipped is something that is there, whatever it is.
type skipped struct{}

// UnmarshalJSON implements json.Unmarshaler.
func (*skipped) UnmarshalJSON([]byte) error { return nil }

// inputs counts what was read at the printer by others.
func (p *poll) inputs() (n int) {
	for _, r := range p.BarcodeReader {
		n += len(r.Scan)
	}
	for _, k := range p.Keyboard {
		if k.KeyPresses {
			n++
		}
	}
	return n
}

// readPoll reads one; what is not one is an error.
func readPoll(b []byte) (poll, error) {
	var p poll
	if err := json.Unmarshal(b, &p); err != nil {
		return poll{}, err
	}
	p.StatusCode = unescape(p.StatusCode)
	if number(p.StatusCode) < 100 {
		return poll{}, errors.New("no statusCode")
	}
	return p, nil
}

// unescape undoes what some firmware does to texts: 200%20OK.
func unescape(s string) string {
	if u, err := url.QueryUnescape(s); err == nil {
		return u
	}
	return s
}

// look puts what the printer tells into UnifiedPOS words: the frame when there
// is one, else the code, which knows less.
func (p *poll) look(nearEnd bool) (hal.Power, map[string]hal.Tri) {
	if f := parseFrame(p.Status); f != nil {
		return readFrame(f).look(nearEnd)
	}
	power, n := hal.PowerOnline, number(p.StatusCode)
	if n/100 != 2 {
		power = hal.PowerOffline
	}
	s := map[string]hal.Tri{}
	switch { // it names one reason and is silent on others
	case n/100 == 2:
		s["CoverOpen"], s["RecEmpty"], s["M_MechanicalError"] = hal.No, hal.No, hal.No
		if nearEnd {
			s["RecNearEnd"] = hal.TriOf(n/10 == 21)
		}
	case n == 411 || n == 412:
		s["M_MechanicalError"] = hal.Yes
	case n/10 == 41:
		s["RecEmpty"] = hal.Yes
	case n/10 == 42:
		s["CoverOpen"] = hal.Yes
	}
	return power, s
}

// parseFrame reads a frame in hexadecimal, with or without spaces and leading
// zeros; nil when it is none.
func parseFrame(s string) []byte {
	if len(s) > 128 {
		return nil
	}
	var f []byte
	if words := strings.Fields(s); len(words) > 1 {
		for _, w := range words {
			b, err := strconv.ParseUint(w, 16, 8)
			if err != nil {
				return nil
			}
			f = append(f, byte(b))
		}
	} else {
		var err error
		if f, err = hex.DecodeString(strings.TrimSpace(s)); err != nil {
			return nil
		}
	}
	if len(f) < minFrame || f[0]&0x91 != 0x01 || length(f[0]) < minFrame || length(f[0]) > len(f) {
		return nil
	}
	return f[:length(f[0])]
}

// answer is what the printer is told.
type answer struct {
	JobReady     bool     `json:"jobReady"`
	MediaTypes   []string `json:"mediaTypes,omitempty"`
	JobToken     string   `json:"jobToken,omitempty"`
	DeleteMethod string   `json:"deleteMethod,omitempty"`
	ClientAction []action `json:"clientAction,omitempty"`
}

type action struct {
	Request string `json:"request"`
	Options string `json:"options"`
}

// maxAsked is how often a printer is asked who it is.
const maxAsked = 3

// serve answers the printer, and refuses everybody else.
func (c *cloud) serve(w http.ResponseWriter, r *http.Request) {
	c.slow(r.Context())
	if !c.logged(r) {
		c.track.Count("M_RefusedCount", 1)
		w.Header().Set("WWW-Authenticate", `Basic realm="printer"`)
		http.Error(w, "log on", http.StatusUnauthorized)
		return
	}
	switch r.Method {
	case http.MethodPost:
		c.polled(w, r)
	case http.MethodGet, http.MethodDelete:
		q := r.URL.Query()
		if !q.Has("type") && !q.Has("code") {
			http.Error(w, "HTTP only", http.StatusNotFound) // it asks whether there is MQTT
			return
		}
		if !c.known(q.Get("mac"), w) {
			return
		}
		if q.Has("code") {
			c.confirmed(w, q)
		} else {
			c.fetched(w, q)
		}
	default:
		http.Error(w, "POST, GET or DELETE", http.StatusMethodNotAllowed)
	}
}

// slow makes who asks without an end wait.
func (c *cloud) slow(ctx context.Context) {
	c.mu.Lock()
	now := time.Now()
	c.spent = max(0, c.spent-now.Sub(c.calm).Seconds()*askOn) + 1
	c.calm = now
	many := c.spent > askAtOnce
	c.mu.Unlock()
	if !many {
		return
	}
	wait := time.NewTimer(calmFor)
	defer wait.Stop()
	select {
	case <-wait.C:
	case <-ctx.Done():
	}
}

// known refuses and counts strangers.
func (c *cloud) known(mac string, w http.ResponseWriter) bool {
	m, err := net.ParseMAC(mac)
	if err == nil && m.String() == c.mac {
		return true
	}
	c.track.Count("M_UnknownPrinterCount", 1)
	http.Error(w, "not a printer of this box", http.StatusForbidden)
	return false
}

// polled takes in what the printer tells.
func (c *cloud) polled(w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	var p poll
	if err == nil {
		p, err = readPoll(b)
	}
	clear(b) // a scan may be in it
	if err != nil {
		c.track.Count("CommunicationErrorCount", 1)
		http.Error(w, "not a poll", http.StatusBadRequest)
		return
	}
	if !c.known(unescape(p.PrinterMAC), w) {
		return
	}
	if n := p.inputs(); n > 0 {
		c.track.Count("M_InputDroppedCount", float64(n))
	}
	out, err := json.Marshal(c.take(&p, r.Header.Get("X-Star-Serial-Number")))
	if err != nil {
		http.Error(w, "no answer", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(out)
}

func (c *cloud) take(p *poll, serial string) answer {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = time.Now()
	for _, a := range p.ClientAction {
		c.learn(a.Request, a.Result)
	}
	c.set(&c.info.Serial, serial)
	c.track.Update(p.look(c.nearEnd))
	var out answer
	if c.job != nil && c.job.fetched.IsZero() {
		out = answer{JobReady: true, MediaTypes: []string{c.media}, JobToken: c.job.token, DeleteMethod: http.MethodDelete}
	}
	if c.info.Model == "" && c.asked < maxAsked {
		c.asked++
		out.ClientAction = []action{{Request: "ClientType"}, {Request: "ClientVersion"}, {Request: "GetPollInterval"}}
	}
	return out
}

// learn takes in, with c.mu held, what the printer answers about itself.
func (c *cloud) learn(request string, result json.RawMessage) {
	var text string
	if json.Unmarshal(result, &text) != nil {
		text = string(bytes.TrimSpace(result)) // a number
	}
	switch request {
	case "ClientType":
		c.set(&c.info.Model, strings.TrimPrefix(text, "Star "))
	case "ClientVersion":
		c.set(&c.info.Firmware, text)
	case "GetPollInterval":
		if s, err := strconv.ParseFloat(text, 64); err == nil && s >= 1 && s <= 600 && !c.told {
			c.every = time.Duration(s * float64(time.Second))
		}
	}
}

// set notes, with c.mu held, a text that the printer tells, if it is fit to
// be told.
func (c *cloud) set(to *string, text string) {
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return -1
		}
		return r
	}, unescape(text))
	text = strings.TrimSpace(text[:min(len(text), 64)])
	switch {
	case text == "" || text == *to:
	case hal.MayHoldPAN(text):
		c.track.Count("M_PanGuardDropCount", 1)
	default:
		*to = text
	}
}

// fetched hands the job out, again if the printer asks again.
func (c *cloud) fetched(w http.ResponseWriter, q url.Values) {
	c.mu.Lock()
	j := c.job
	var body []byte
	ours := j != nil && (!q.Has("token") || q.Get("token") == j.token)
	if ours && q.Get("type") == c.media {
		body = bytes.Clone(j.body) // it may be withdrawn while it is sent
		j.fetched = time.Now()
	}
	c.mu.Unlock()
	switch {
	case !ours:
		http.Error(w, "no job", http.StatusNotFound)
		return
	case body == nil && len(j.body) > 0:
		http.Error(w, "only "+c.media, http.StatusUnsupportedMediaType)
		return
	}
	w.Header().Set("Content-Type", c.media)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	_, _ = w.Write(body)
	clear(body)
}

// confirmed takes in what became of the job. A printer that repeats itself is
// answered as before.
func (c *cloud) confirmed(w http.ResponseWriter, q url.Values) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = time.Now()
	if j := c.job; j != nil && (!q.Has("token") || q.Get("token") == j.token) && (!j.fetched.IsZero() || !good(q.Get("code"))) {
		select {
		case j.done <- q.Get("code"):
		default:
		}
	}
	w.WriteHeader(http.StatusOK)
}
