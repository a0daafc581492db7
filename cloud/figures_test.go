package cloud

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/broker"
	"github.com/tillward/tillward/cloud/internal/fleet"
)

// served runs a service that has a sink, and has answered a little.
func served(t *testing.T, change ...func(*Config)) *Service {
	t.Helper()
	dir := t.TempDir()
	cfg := DefaultConfig()
	cfg.DataDir = filepath.Join(dir, "data")
	cfg.Device.MQTT, cfg.Device.HTTPS, cfg.Operator.Listen, cfg.Metrics.Listen = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	cfg.Operator.Plain = true
	cfg.Export = []ExportConfig{{Name: "disk", Kind: "file", Format: "cef", Path: filepath.Join(dir, "trail")}}
	for _, f := range change {
		f(&cfg)
	}
	s, err := New(t.Context(), cfg, slog.New(slog.DiscardHandler))
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		must(t, <-ended)
	})
	s.meter().Answered("up/audit", 100, time.Millisecond, nil)
	s.meter().Answered("up/live", 100, time.Millisecond, nil)
	s.meter().Answered("up/audit", 100, time.Millisecond, broker.ErrOffline)
	s.meter().Sent("down/command", 10, nil)
	s.meter().Connected(time.Millisecond, broker.ErrOffline)
	s.deliver(ctx, "nobody") //nolint:errcheck // it is counted, that is all
	return s
}

// asked is the answer to GET of the operator API, as the first operator.
func asked(t *testing.T, s *Service, path string, into any) int {
	t.Helper()
	token, err := os.ReadFile(filepath.Join(s.cfg.DataDir, "admin.token"))
	must(t, err)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+s.Addrs().Operator+path, nil)
	must(t, err)
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	resp, err := http.DefaultClient.Do(req)
	must(t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	must(t, err)
	if into != nil {
		if err := json.Unmarshal(b, into); err != nil {
			t.Fatalf("%s: %v in %s", path, err, b)
		}
	}
	return resp.StatusCode
}

var (
	named  = regexp.MustCompile(`tillward_[a-z_]+`)
	helped = regexp.MustCompile(`(?m)^# HELP (tillward_[a-z_]+) (.+)$`)
	row    = regexp.MustCompile("(?m)^\\| `(tillward_[a-z_]+)`")
)

// shown are the metrics that a running service has, once all of them are there.
func shown(t *testing.T, s *Service) []string {
	t.Helper()
	asked(t, s, "/v1/devices", nil)
	for end := time.Now().Add(60 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		var names []string
		page := metricsOf(t, s)
		for _, m := range helped.FindAllStringSubmatch(page, -1) {
			names = append(names, m[1])
			if !strings.HasSuffix(m[2], ".") || len(m[2]) < 15 {
				t.Errorf("%s: help %q is no sentence", m[1], m[2])
			}
		}
		if strings.Contains(page, `tillward_part_health{part="clock"}`) && strings.Contains(page, `tillward_answers_total{op="GET /v1/devices",outcome="ok",part="api"} `) &&
			strings.Contains(page, `tillward_answer_duration_seconds_bucket{op="commit",part="store",le="0.001"}`) {
			return names
		}
		if time.Now().After(end) {
			t.Fatalf("not all is there: %s", page)
		}
	}
}

// TestMetricsAreDocumented compares the table of docs/figures.md with what a
// running service answers, and the names with the conventions of Prometheus.
func TestMetricsAreDocumented(t *testing.T) {
	s := served(t)
	names := shown(t, s)
	if page := metricsOf(t, s); !strings.Contains(page, `tillward_answers_total{op="live",outcome="ok",part="mqtt-up"} 1`) {
		t.Error("what tills send ahead is not counted")
	}
	b, err := os.ReadFile("../docs/figures.md")
	must(t, err)
	_, table, _ := strings.Cut(string(b), "<!-- metrics -->")
	table, _, ok := strings.Cut(table, "<!-- end of metrics -->")
	if !ok {
		t.Fatal("docs/figures.md has no table of metrics between its marks")
	}
	var rows []string
	for _, m := range row.FindAllStringSubmatch(table, -1) {
		rows = append(rows, m[1])
	}
	for _, n := range names {
		if !slices.Contains(rows, n) {
			t.Errorf("%s has no row in docs/figures.md", n)
		}
	}
	const onlyWhenThereAre = "tillward_rollout_devices"
	for _, n := range rows {
		if !slices.Contains(names, n) && n != onlyWhenThereAre {
			t.Errorf("docs/figures.md has a row for %s, which nobody tells", n)
		}
	}
	for _, n := range names {
		for _, unit := range []string{"_ms", "_mib", "_minutes", "_percent"} {
			if strings.Contains(n+"_", unit+"_") {
				t.Errorf("%s: Prometheus has seconds, bytes and ratios", n)
			}
		}
	}
}

type panel struct {
	ID         int    `json:"id"`
	Type       string `json:"type"`
	Title      string `json:"title"`
	Datasource struct{ UID string }
	GridPos    struct{ H, W, X, Y int }
	Targets    []struct {
		Expr       string
		Datasource struct{ UID string }
	}
}

type dashboard struct {
	UID        string
	Title      string
	Panels     []panel
	Templating struct {
		List []struct{ Name, Type string }
	}
}

func readDashboard(t *testing.T) dashboard {
	t.Helper()
	b, err := os.ReadFile("../docs/grafana/tillward.json")
	must(t, err)
	var d dashboard
	must(t, json.Unmarshal(b, &d))
	return d
}

// base is the name of a metric without what a histogram adds.
func base(name string) string {
	for _, s := range []string{"_bucket", "_sum", "_count"} {
		name = strings.TrimSuffix(name, s)
	}
	return name
}

// TestDashboard holds the dashboard and the alerts against a running service:
// every metric they name is there, and panels do not lie on each other.
func TestDashboard(t *testing.T) {
	names := append(shown(t, served(t)), "tillward_rollout_devices")
	alerts, err := os.ReadFile("../docs/grafana/alerts.yml")
	must(t, err)
	d := readDashboard(t)
	texts := []string{string(alerts)}
	ids, places := map[int]bool{}, map[[2]int]string{}
	var vars []string
	for _, v := range d.Templating.List {
		vars = append(vars, v.Name+" "+v.Type)
	}
	if !slices.Contains(vars, "datasource datasource") || d.UID == "" || d.Title == "" || len(d.Panels) < 30 {
		t.Fatalf("got %+v, want a dashboard with a variable for its data source", vars)
	}
	for _, p := range d.Panels {
		if ids[p.ID] || p.ID == 0 || p.Title == "" {
			t.Errorf("panel %d %q: its id is there twice, or it has none", p.ID, p.Title)
		}
		ids[p.ID] = true
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := places[[2]int{x, y}]; other != "" || x >= 24 {
					t.Fatalf("panels %q and %q lie on each other, or beside the page", p.Title, other)
				}
				places[[2]int{x, y}] = p.Title
			}
		}
		if p.Type == "row" {
			continue
		}
		if len(p.Targets) == 0 || p.Datasource.UID != "${datasource}" {
			t.Errorf("panel %q asks nobody", p.Title)
		}
		for _, q := range p.Targets {
			if q.Datasource.UID != "${datasource}" || !strings.Contains(q.Expr, `instance=~"$instance"`) {
				t.Errorf("panel %q asks for %s, of no service that was chosen", p.Title, q.Expr)
			}
			texts = append(texts, q.Expr)
		}
	}
	found := 0
	for _, text := range texts {
		for _, n := range named.FindAllString(text, -1) {
			if found++; !slices.Contains(names, base(n)) {
				t.Errorf("%s is in dashboard or alerts, and nobody tells it", n)
			}
		}
	}
	if found < 50 {
		t.Errorf("only %d metrics found: the test looks in the wrong place", found)
	}
}

// scraper finds Debian's, unpacked or installed.
func scraper(t *testing.T) (server, tool string) {
	t.Helper()
	for _, dir := range []string{"../.cache/prometheus/usr/bin", "/usr/bin"} {
		if _, err := os.Stat(filepath.Join(dir, "promtool")); err == nil {
			server, err = filepath.Abs(filepath.Join(dir, "prometheus"))
			must(t, err)
			return server, filepath.Join(filepath.Dir(server), "promtool")
		}
	}
	if os.Getenv("CI") != "" {
		t.Fatal("prometheus is not here: nothing was proved")
	}
	t.Skip("prometheus is not here; `make test` brings it")
	return "", ""
}

// TestPrometheus has a real Prometheus scrape a service, load the alerts and
// answer every query of the dashboard.
func TestPrometheus(t *testing.T) {
	server, tool := scraper(t)
	if out, err := exec.CommandContext(t.Context(), tool, "check", "rules", "../docs/grafana/alerts.yml").CombinedOutput(); err != nil {
		t.Fatalf("promtool: %v\n%s", err, out)
	}
	s, dir := served(t), t.TempDir()
	shown(t, s)
	rules, err := filepath.Abs("../docs/grafana/alerts.yml")
	must(t, err)
	conf := fmt.Sprintf("global: {scrape_interval: 1s, evaluation_interval: 1s}\nrule_files: [%q]\nscrape_configs:\n  - job_name: tillward\n    static_configs: [{targets: [%q]}]\n", rules, s.Addrs().Metrics)
	must(t, os.WriteFile(filepath.Join(dir, "prometheus.yml"), []byte(conf), 0o600))
	cmd := exec.CommandContext(t.Context(), server, "--config.file="+filepath.Join(dir, "prometheus.yml"), "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address=127.0.0.1:0", "--log.format=json")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	log, err := cmd.StderrPipe()
	must(t, err)
	must(t, cmd.Start())
	address := make(chan string, 1)
	go func() {
		defer close(address)
		for lines := bufio.NewScanner(log); lines.Scan(); {
			var l struct{ Msg, Address string }
			if json.Unmarshal(lines.Bytes(), &l) == nil && strings.HasPrefix(l.Msg, "Listening on") {
				address <- l.Address
			}
		}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	})
	at, ok := <-address
	if !ok {
		t.Fatal("prometheus does not listen")
	}
	query := func(expr string) (n int, err error) {
		expr = strings.NewReplacer("$instance", ".*", "$part", ".*", "$__rate_interval", "1m", "$__range", "1m").Replace(expr)
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+at+"/api/v1/query?query="+url.QueryEscape(expr), nil)
		if err != nil {
			return 0, err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return 0, err
		}
		defer resp.Body.Close()
		var a struct {
			Status, Error string
			Data          struct{ Result []json.RawMessage }
		}
		if err := json.NewDecoder(resp.Body).Decode(&a); err != nil {
			return 0, err
		}
		if a.Status != "success" {
			err = errors.New(a.Error)
		}
		return len(a.Data.Result), err
	}
	for end := time.Now().Add(60 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		if n, err := query(`count_over_time(tillward_build_info[1m]) > 2`); err == nil && n == 1 {
			break
		} else if time.Now().After(end) {
			t.Fatalf("nothing is scraped: %d, %v", n, err)
		}
	}
	empty, asked := 0, 0
	for _, p := range readDashboard(t).Panels {
		for _, q := range p.Targets {
			asked++
			n, err := query(q.Expr)
			if err != nil {
				t.Errorf("panel %q: %s: %v", p.Title, q.Expr, err)
			}
			if n == 0 {
				empty++
				t.Logf("panel %q is empty: %s", p.Title, q.Expr)
			}
		}
	}
	if asked < 35 || empty > 3 { // there is no rollout, nothing is refused
		t.Errorf("of %d queries %d have no answer", asked, empty)
	}
	if n, err := query(`ALERTS{alertname="TillwardDown"}`); n != 0 || err != nil {
		t.Errorf("the service is there, and %d alarms say it is not, %v", n, err)
	}
}

// TestHealth looks at the parts of a service that is well, and of one whose sink
// cannot be written.
func TestHealth(t *testing.T) {
	s := served(t, func(c *Config) {
		c.Export = append(c.Export, ExportConfig{Name: "nowhere", Kind: "file", Path: filepath.Join(c.DataDir, "no", "folder", "trail"), StallAfter: Duration{time.Second}})
	})
	var h struct {
		State string
		Parts []struct{ Part, State, What, Todo string }
	}
	for end := time.Now().Add(90 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		asked(t, s, "/v1/health", &h)
		i := slices.IndexFunc(h.Parts, func(p struct{ Part, State, What, Todo string }) bool { return p.Part == "export/nowhere" })
		if h.State == fleet.PartFailing && i >= 0 && h.Parts[i].State == fleet.PartFailing && h.Parts[i].Todo != "" {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the sink that cannot be written is no failure: %+v", h)
		}
	}
	for _, part := range []string{"store", "broker", "ingest", "verifier", "rollout", "export/disk", "certificates", "access-log", "archive"} {
		i := slices.IndexFunc(h.Parts, func(p struct{ Part, State, What, Todo string }) bool { return p.Part == part })
		// A machine that has a lot to do may make commits slow, which is told.
		if i < 0 || h.Parts[i].State == fleet.PartFailing || h.Parts[i].What == "" || h.Parts[i].State != fleet.PartOK && part != "store" && part != "ingest" {
			t.Errorf("%s is not well: %+v", part, h.Parts)
		}
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+s.Addrs().Metrics+"/healthz", nil)
	must(t, err)
	resp, err := http.DefaultClient.Do(req)
	must(t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	must(t, err)
	if resp.StatusCode != http.StatusOK || !strings.Contains(string(b), `"state":"failing"`) { // a SIEM is no reason to start anew
		t.Errorf("healthz answers %d %s", resp.StatusCode, b)
	}
}

// TestJudges are the twins: what is wrong is told.
func TestJudges(t *testing.T) {
	for name, tt := range map[string]struct {
		d    disk
		want string
	}{
		"roomy":         {disk{1, 500 << 30, 1000 << 30}, fleet.PartOK},
		"a tenth":       {disk{1, 90 << 30, 1000 << 30}, fleet.PartDegraded},
		"small":         {disk{1, 1 << 30, 4 << 30}, fleet.PartDegraded},
		"nothing":       {disk{1, 0, 1000 << 30}, fleet.PartFailing},
		"a little left": {disk{1, 100 << 20, 1 << 30}, fleet.PartFailing},
		"none at all":   {disk{1, 0, 0}, fleet.PartFailing},
	} {
		if got := judgeDisk("disk", "/data", tt.d, true); got.State != tt.want || (got.Todo == "") != (tt.want == fleet.PartOK) {
			t.Errorf("a disk with %s: got %+v, want %s", name, got, tt.want)
		}
	}
	sync := true
	c, noon := &clockWatch{synched: func() (bool, error) { return sync, nil }}, time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
	for i, tt := range []struct {
		shown  time.Duration // by the clock
		passed time.Duration
		synch  bool
		want   string
	}{
		{0, 0, true, fleet.PartOK},
		{10 * time.Second, 10 * time.Second, true, fleet.PartOK},
		{20 * time.Second, 20 * time.Second, false, fleet.PartDegraded},
		{40 * time.Second, 30 * time.Second, true, fleet.PartOK}, // slewed
		{2 * time.Hour, 40 * time.Second, true, fleet.PartDegraded},
		{2*time.Hour + time.Minute, 100 * time.Second, true, fleet.PartDegraded}, // still told of
		{4 * time.Hour, 2*time.Hour + 40*time.Second, true, fleet.PartOK},
		{time.Hour, 2*time.Hour + 50*time.Second, true, fleet.PartDegraded}, // back
	} {
		sync = tt.synch
		if state, what, todo := c.look(noon.Add(tt.shown), tt.passed); state != tt.want || (todo == "") != (state == fleet.PartOK) {
			t.Errorf("%d: got %s, %q, want %s", i, state, what, tt.want)
		}
	}
	idle := &Service{began: time.Now()}
	if state, _, _ := idle.rolloutHealth(t.Context()); state != fleet.PartOK {
		t.Errorf("before the first round: got %s", state)
	}
	idle.began = idle.began.Add(-2 * roundsStop)
	if state, what, todo := idle.rolloutHealth(t.Context()); state != fleet.PartFailing || todo == "" {
		t.Errorf("no round since the start: got %s, %s", state, what)
	}
	deaf := newService(t) // its broker does not run
	deaf.began = time.Now()
	if state, what, _ := deaf.brokerHealth(t.Context()); state != fleet.PartOK {
		t.Errorf("before the broker listens: got %s, %s", state, what)
	}
	deaf.began = deaf.began.Add(-2 * startWithin)
	if state, what, todo := deaf.brokerHealth(t.Context()); state != fleet.PartFailing || todo == "" {
		t.Errorf("it does not listen since the start: got %s, %s", state, what)
	}
	var p pulse
	p.beat(nil)
	p.beat(errors.New("no room"))
	_, since, _ := p.last()
	p.beat(errors.New("no room still"))
	if _, again, err := p.last(); err == nil || !again.Equal(since) {
		t.Error("it fails since the first failure")
	}
	p.beat(nil)
	if _, since, err := p.last(); err != nil || !since.IsZero() {
		t.Error("it is well again")
	}
	if _, err := fileEnds(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a certificate that is not there has an end")
	}
	bad := filepath.Join(t.TempDir(), "x.pem")
	must(t, os.WriteFile(bad, []byte("no certificate"), 0o600))
	if _, err := fileEnds(bad); err == nil {
		t.Error("what is no certificate has an end")
	}
}

// TestAccessLogOfAService pushes secrets through what the service listens on,
// and looks for them in its access log, figures and metrics.
func TestAccessLogOfAService(t *testing.T) {
	const card, secret = "4111111111111111", "twt_hushhushhush"
	s := served(t)
	devices := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	defer devices.CloseIdleConnections()
	for _, word := range []string{card, secret} {
		for _, at := range []struct {
			c   *http.Client
			url string
		}{{http.DefaultClient, "http://" + s.Addrs().Operator}, {devices, "https://" + s.Addrs().HTTPS}} {
			for _, path := range []string{"/v1/devices/" + word, "/v1/devices?q=" + word, "/v1/" + word, "/" + word, "/tuf/" + word, "/v1/enrol?x=" + word, "/v1/figures?part=" + word, "/v1/figures?step=" + word} {
				for _, method := range []string{http.MethodGet, http.MethodPost, word} {
					req, err := http.NewRequestWithContext(t.Context(), method, at.url+path, strings.NewReader(`{"token":"`+word+`"}`))
					must(t, err)
					for _, h := range []string{"Authorization", "User-Agent", "Referer", "X-Forwarded-For", "X-Tillward"} {
						req.Header.Set(h, word)
					}
					req.Header.Set("Authorization", "Bearer "+word)
					req.AddCookie(&http.Cookie{Name: "tw_session", Value: word})
					resp, err := at.c.Do(req)
					must(t, err)
					_, _ = io.Copy(io.Discard, resp.Body)
					_ = resp.Body.Close()
				}
			}
		}
	}
	for _, path := range []string{"/v1/figures", "/v1/health"} { // nobody looks who has not signed in
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+s.Addrs().Operator+path, nil)
		must(t, err)
		resp, err := http.DefaultClient.Do(req)
		must(t, err)
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusUnauthorized {
			t.Errorf("%s answers %d to nobody", path, resp.StatusCode)
		}
	}
	var f map[string]any
	if asked(t, s, "/v1/figures", &f) != http.StatusOK || asked(t, s, "/v1/figures?step=1ms", nil) != http.StatusUnprocessableEntity {
		t.Errorf("the figures are not told: %v", f)
	}
	var text []byte
	for end := time.Now().Add(60 * time.Second); !strings.Contains(string(text), `"who":"admin","route":"GET /v1/figures","status":422`); time.Sleep(20 * time.Millisecond) {
		var err error
		text, err = os.ReadFile(filepath.Join(s.cfg.DataDir, "access.log"))
		must(t, err)
		if time.Now().After(end) {
			t.Fatalf("no line of a request of the first operator: %.2000s", text)
		}
	}
	if n := strings.Count(string(text), "\n"); n < 80 || !strings.Contains(string(text), `"part":"device","route":"enrol"`) || !strings.Contains(string(text), `"route":"unmatched"`) {
		t.Errorf("the log has %d lines, want each request: %s", n, text)
	}
	told, err := json.Marshal(f)
	must(t, err)
	all := string(text) + string(told) + metricsOf(t, s)
	for _, word := range []string{card, card[:9], secret, "hush"} {
		if i := strings.Index(all, word); i >= 0 {
			t.Errorf("%q is told: ...%.200s", word, all[max(0, i-100):])
		}
	}
}
