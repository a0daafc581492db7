package main

import (
	"context"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

type peripheralCmd struct {
	List       peripheralList       `cmd:"" help:"List peripherals of all devices."`
	Show       peripheralShow       `cmd:"" help:"Show a peripheral: how it is, what to do, when its paper ends, how it was."`
	Statistics peripheralStatistics `cmd:"" help:"Show what a peripheral counts, by its UnifiedPOS names."`
}

type peripheral struct {
	ID          string            `json:"id"`
	Device      string            `json:"device"`
	DeviceLabel string            `json:"device_label"`
	Site        string            `json:"site"`
	Category    string            `json:"category"`
	Driver      string            `json:"driver"`
	Maker       string            `json:"maker"`
	Model       string            `json:"model"`
	Serial      string            `json:"serial"`
	Firmware    string            `json:"firmware"`
	Simulated   bool              `json:"simulated"`
	Power       string            `json:"power"`
	Health      string            `json:"health"`
	Reason      string            `json:"reason"`
	Advice      string            `json:"advice"`
	Since       *time.Time        `json:"since"`
	Sensors     map[string]string `json:"sensors"`
	Claim       string            `json:"claim"`
	Key         string            `json:"key"`
	Interface   string            `json:"interface"`
	GoneAt      *time.Time        `json:"gone_at"`
	Last        *struct {
		Health string     `json:"health"`
		Reason string     `json:"reason"`
		Since  *time.Time `json:"since"`
	} `json:"last"`
	Paper *struct {
		RunOutAt     time.Time `json:"run_out_at"`
		Earliest     time.Time `json:"earliest"`
		Latest       time.Time `json:"latest"`
		Confidence   float64   `json:"confidence"`
		LinesLeft    float64   `json:"lines_left"`
		LinesPerHour float64   `json:"lines_per_hour"`
		Basis        string    `json:"basis"`
	} `json:"paper"`
	Reads *struct {
		Rate      float64 `json:"rate"`
		FleetRate float64 `json:"fleet_rate"`
		Reads     uint64  `json:"reads"`
		Worse     bool    `json:"worse"`
	} `json:"reads"`
}

type peripheralList struct {
	Health   string        `help:"Only OK, Attention, Fault, Offline or Unknown ones." enum:",OK,Attention,Fault,Offline,Unknown" default:""`
	Category string        `help:"Only of this UnifiedPOS category, e.g. POSPrinter, CashDrawer, SmartCardRW, Scanner." placeholder:"NAME"`
	Reason   string        `help:"Only for this reason, e.g. REC_EMPTY, COVER_OPEN, M_TILL_OFFLINE." placeholder:"CODE"`
	Site     string        `help:"Only of devices at this site."`
	Query    string        `short:"q" help:"Part of id, model, maker or serial, or of the device's id or label."`
	RunsOut  time.Duration `name:"runs-out-in" help:"Only printers whose roll is predicted to end within this time." placeholder:"TIME"`
}

// Help teaches.
func (peripheralList) Help() string {
	return `Unknown is not OK: nothing that matters has been seen, or the till is offline.

  tillward peripheral list --health Fault          what somebody has to see to now
  tillward peripheral list --runs-out-in 4h        where to bring paper today
  tillward peripheral list --reason M_READ_ERRORS  readers that want cleaning`
}

// Run implements the command.
func (c *peripheralList) Run(ctx context.Context, o *out, api *client) error {
	q := url.Values{"limit": {"1000"}}
	for k, v := range map[string]string{"health": c.Health, "category": c.Category, "reason": c.Reason, "site": c.Site, "q": c.Query} {
		if v != "" {
			q.Set(k, v)
		}
	}
	if c.RunsOut < 0 {
		return usage{fmt.Errorf("--runs-out-in %s: give a time that is ahead", c.RunsOut)}
	}
	if c.RunsOut > 0 {
		q.Set("run_out_before", time.Now().Add(c.RunsOut).UTC().Format(time.RFC3339))
	}
	items, err := api.all(ctx, "/v1/peripherals", q, 0)
	if err != nil {
		return err
	}
	return list(o, items, "DEVICE\tPERIPHERAL\tCATEGORY\tHEALTH\tREASON\tSINCE\tPAPER ENDS\tSITE\tLABEL", func(p peripheral) string {
		ends := ""
		if p.Paper != nil {
			ends = clock(p.Paper.RunOutAt)
		}
		return tab(p.Device, p.ID, p.Category, p.Health, p.Reason, ago(p.Since), ends, p.Site, p.DeviceLabel)
	})
}

// clock is a time soon or lately, to the minute.
func clock(t time.Time) string { return t.Local().Format("2006-01-02 15:04") }

type peripheralShow struct {
	Device     string `arg:"" help:"Device id."`
	Peripheral string `arg:"" help:"Its id, as in tillward device show."`
	Window     string `help:"Sum up states over 24h, 7d or 30d." enum:"24h,7d,30d" default:"24h"`
}

func (c *peripheralShow) path() string { return peripheralPath(c.Device, c.Peripheral) }

func peripheralPath(device, peripheral string) string {
	return "/v1/devices/" + url.PathEscape(device) + "/peripherals/" + url.PathEscape(peripheral)
}

// Run implements the command.
func (c *peripheralShow) Run(ctx context.Context, o *out, api *client) error {
	var raw json.RawMessage
	if err := api.get(ctx, c.path()+"?window="+c.Window, &raw); err != nil {
		return err
	}
	if o.json {
		_, err := fmt.Fprintln(o.w, string(raw))
		return err
	}
	var p shownPeripheral
	if err := json.Unmarshal(raw, &p); err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	return p.print(o.w)
}

type shownPeripheral struct {
	peripheral
	Window    string `json:"window"`
	Durations []struct {
		Health  string  `json:"health"`
		Reason  string  `json:"reason"`
		Seconds float64 `json:"seconds"`
		Times   int     `json:"times"`
	} `json:"durations"`
	Spans []struct {
		Health string     `json:"health"`
		Reason string     `json:"reason"`
		From   *time.Time `json:"from"`
		To     *time.Time `json:"to"`
	} `json:"spans"`
	Checks []struct {
		At    *time.Time `json:"at"`
		Level string     `json:"level"`
		OK    bool       `json:"ok"`
		Steps []struct {
			ID   string `json:"id"`
			OK   bool   `json:"ok"`
			Code string `json:"code"`
			MS   uint32 `json:"ms"`
		} `json:"steps"`
	} `json:"checks"`
}

func (p *shownPeripheral) print(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(cells ...string) {
		for i, c := range cells {
			cells[i] = plainText(c)
		}
		fmt.Fprintln(tw, strings.Join(cells, "\t"))
	}
	words := func(s ...string) string {
		return strings.Join(slices.DeleteFunc(s, func(s string) bool { return s == "" }), " ")
	}
	sim := ""
	if p.Simulated {
		sim = "(simulated)"
	}
	row("peripheral", words(p.ID, "of", p.Device, p.DeviceLabel, p.Site))
	row("what it is", words(p.Category, p.Maker, p.Model, p.Serial, p.Firmware, sim))
	row("where it is", words(p.Key, p.Interface, p.Claim, p.Driver))
	row("health", words(p.Health, p.Reason, "since", ago(p.Since)))
	if p.Advice != "" {
		row("what to do", p.Advice)
	}
	if p.Last != nil {
		row("was", words(p.Last.Health, p.Last.Reason, "since", ago(p.Last.Since)))
	}
	if p.GoneAt != nil {
		row("gone", ago(p.GoneAt))
	}
	then := ""
	if p.Last != nil { // nobody knows how it is now
		then = "was"
	}
	row("power", words(then, p.Power))
	for _, k := range slices.Sorted(maps.Keys(p.Sensors)) {
		row("  "+k, words(then, p.Sensors[k]))
	}
	if v := p.Paper; v != nil {
		row("paper ends", fmt.Sprintf("%s (%s to %s), %.0f %% sure", clock(v.RunOutAt), clock(v.Earliest), clock(v.Latest), v.Confidence*100))
		row("", fmt.Sprintf("%.0f lines left (%s), %.0f an hour", v.LinesLeft, v.Basis, v.LinesPerHour))
	}
	if v := p.Reads; v != nil {
		worse := ""
		if v.Worse {
			worse = ": worse, and not by chance"
		}
		row("reads", fmt.Sprintf("%d, of which %.1f %% failed; others of the model %.1f %%%s", v.Reads, v.Rate*100, v.FleetRate*100, worse))
	}
	fmt.Fprintf(tw, "\nIN THE LAST %s\tTIME\tTIMES\n", strings.ToUpper(p.Window))
	for _, d := range p.Durations {
		row(words(d.Health, d.Reason), (time.Duration(d.Seconds) * time.Second).String(), fmt.Sprint(d.Times))
	}
	fmt.Fprintln(tw, "\nSTATE\tFROM\tTO")
	for _, s := range p.Spans {
		to := "now"
		if s.To != nil {
			to = s.To.Local().Format(time.DateTime)
		}
		from := ""
		if s.From != nil {
			from = s.From.Local().Format(time.DateTime)
		}
		row(words(s.Health, s.Reason), from, to)
	}
	if len(p.Checks) > 0 {
		fmt.Fprintln(tw, "\nCHECK\tWHEN\tSTEPS")
	}
	for _, c := range p.Checks {
		said := "failed"
		if c.OK {
			said = "ok"
		}
		var steps []string
		for _, s := range c.Steps {
			how := "ok"
			if !s.OK {
				how = words("failed", s.Code)
			}
			steps = append(steps, fmt.Sprintf("%s %s (%d ms)", s.ID, how, s.MS))
		}
		row(words(c.Level, said), ago(c.At), strings.Join(steps, ", "))
	}
	return tw.Flush()
}

type peripheralStatistics struct {
	Device     string `arg:"" help:"Device id."`
	Peripheral string `arg:"" help:"Its id, as in tillward device show."`
	XML        bool   `name:"xml" help:"Print the UPOSStat document, for tools that read UnifiedPOS statistics."`
}

// Help teaches.
func (peripheralStatistics) Help() string {
	return `Names are those of UnifiedPOS; what begins with M_ is ours. What a peripheral does not count is left out of the table, and is an empty value in the XML.`
}

// Run implements the command.
func (c *peripheralStatistics) Run(ctx context.Context, o *out, api *client) error {
	if c.XML && o.json {
		return usage{fmt.Errorf("give --xml or --json, not both")}
	}
	_, r, err := api.stream(ctx, http.MethodGet, peripheralPath(c.Device, c.Peripheral)+"/statistics.xml", "", nil)
	if err != nil {
		return err
	}
	defer r.Close()
	text, err := io.ReadAll(io.LimitReader(r, 1<<20))
	if err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	if c.XML {
		_, err := o.w.Write(text)
		return err
	}
	type value struct {
		Name  string `xml:"Name" json:"name"`
		Value string `xml:"Value" json:"value"`
	}
	var doc struct {
		Event struct {
			Parameter            []value `xml:"Parameter"`
			ManufacturerSpecific []value `xml:"ManufacturerSpecific"`
		} `xml:"Event"`
	}
	if err := xml.Unmarshal(text, &doc); err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	var items []json.RawMessage
	for _, v := range slices.Concat(doc.Event.Parameter, doc.Event.ManufacturerSpecific) {
		if v.Value == "" {
			continue
		}
		b, err := json.Marshal(v)
		if err != nil {
			return err
		}
		items = append(items, b)
	}
	return list(o, items, "STATISTIC\tVALUE", func(v value) string { return tab(v.Name, v.Value) })
}
