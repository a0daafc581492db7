package cloud

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tillward/tillward/cloud/internal/export"
	"github.com/tillward/tillward/cloud/internal/figures"
	"github.com/tillward/tillward/cloud/internal/fleet"
)

// ExportConfig names a receiver of the audit trails.
type ExportConfig struct {
	Name       string `toml:"name" comment:"what the cursor goes by: another name begins anew"`
	Kind       string `toml:"kind" comment:"syslog (RFC 5424 over TLS), file or webhook"`
	Format     string `toml:"format" comment:"rfc5424, cef or ocsf; empty: rfc5424"`
	Since      string `toml:"since" comment:"of a new sink: start of the trails, or now; empty: start"`
	Address    string `toml:"address,omitempty" comment:"syslog: host:port"`
	ServerName string `toml:"server_name,omitempty" comment:"syslog: name in the receiver's certificate; empty: the host of the address"`
	CA         string `toml:"ca,omitempty" comment:"syslog, webhook: PEM file with the authority of the receiver's certificate"`
	Cert       string `toml:"cert,omitempty" comment:"syslog, webhook: PEM file with our client certificate; empty: none"`
	Key        string `toml:"key,omitempty"`
	Path       string `toml:"path,omitempty" comment:"file: its absolute path"`
	MaxMB      int    `toml:"max_mb,omitempty" comment:"file: its size before another is begun; 0: 100"`
	Keep       int    `toml:"keep,omitempty" comment:"file: how many older ones are kept; 0: 10"`
	URL        string `toml:"url,omitempty" comment:"webhook: https address"`
	SecretFile string `toml:"secret_file,omitempty" comment:"webhook: file with the secret that posts are signed with"`

	Tenant     string   `toml:"tenant,omitempty" comment:"only entries of this tenant; empty: of all"`
	Severity   string   `toml:"severity,omitempty" comment:"only what is at least as severe: info, warn or alarm; empty: everything"`
	Include    []string `toml:"include,omitempty" comment:"only these: kinds (device.revoked), their first words (device) or ids of classes (1205); empty: all"`
	Exclude    []string `toml:"exclude,omitempty" comment:"never these"`
	StallAfter Duration `toml:"stall_after" comment:"something waits for so long: the alarm export.stalled; 0s: 15m"`
}

func (c ExportConfig) sink() export.Sink {
	s := export.Sink{
		Name: c.Name, Kind: c.Kind, Format: c.Format, Since: c.Since, Address: c.Address, ServerName: c.ServerName, CA: c.CA, Cert: c.Cert, Key: c.Key,
		Path: c.Path, MaxMB: c.MaxMB, Keep: c.Keep, URL: c.URL, Secret: c.SecretFile,
		Filter: export.Filter{Tenant: c.Tenant, Severity: c.Severity, Include: c.Include, Exclude: c.Exclude}, StallAfter: c.StallAfter.Duration,
	}
	if s.Format == "" {
		s.Format = export.FormatSyslog
	}
	if s.Since == "" {
		s.Since = "start"
	}
	return s
}

func checkExports(all []ExportConfig) error {
	names, paths := map[string]bool{}, map[string]bool{}
	for _, c := range all {
		if err := c.sink().Check(); err != nil {
			return err
		}
		if names[c.Name] || c.Path != "" && paths[c.Path] {
			return fmt.Errorf("export %q: another sink has its name or its path", c.Name)
		}
		names[c.Name], paths[c.Path] = true, true
	}
	return nil
}

func (s *Service) wireExport() (err error) {
	o := export.Options{
		Store: s.store, Tenant: s.tenant, Version: Version, Log: s.log,
		Confirmed: func(sink string, n int, took time.Duration) {
			s.figures.Op("export", sink).Done(figures.OK, took, 0)
			s.figures.Op("export-entries", sink).Count(figures.OK, int64(n))
		},
		Failed: func(sink string) { s.figures.Op("export", sink).Count(figures.Failed, 1) },
	}
	for _, c := range s.cfg.Export {
		o.Sinks = append(o.Sinks, c.sink())
	}
	s.export, err = export.New(o)
	return err
}

// exportMetrics tells how each sink does.
type exportMetrics struct {
	states func(context.Context) ([]fleet.ExportState, error)
	log    *slog.Logger
}

var (
	exportLag     = prometheus.NewDesc("tillward_export_lag", "Entries of the audit trails that the receiver of a sink does not have yet.", []string{"sink"}, nil)
	exportSent    = prometheus.NewDesc("tillward_export_sent_total", "Entries of the audit trails that the receiver of a sink has.", []string{"sink"}, nil)
	exportLost    = prometheus.NewDesc("tillward_export_lost_total", "Entries of the audit trails that were deleted before they were sent.", []string{"sink"}, nil)
	exportStalled = prometheus.NewDesc("tillward_export_stalled", "Whether something waits for a sink for so long that the alarm was raised.", []string{"sink"}, nil)
	exportSkipped = prometheus.NewDesc("tillward_export_skipped_total", "Entries of the audit trails that the filter of a sink kept back.", []string{"sink"}, nil)
	exportFailing = prometheus.NewDesc("tillward_export_failing", "Whether a sink waits to try again.", []string{"sink"}, nil)
)

// Describe implements prometheus.Collector.
func (m exportMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{exportLag, exportSent, exportLost, exportSkipped, exportFailing, exportStalled} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m exportMetrics) Collect(ch chan<- prometheus.Metric) {
	all, err := m.states(context.Background())
	if err != nil {
		m.log.Error("state of the export", slog.Any("err", err))
		return
	}
	for _, s := range all {
		failing, stalled := 0.0, 0.0
		if s.State == fleet.SinkFailing {
			failing = 1
		}
		if s.Stalled {
			stalled = 1
		}
		ch <- prometheus.MustNewConstMetric(exportLag, prometheus.GaugeValue, float64(s.Lag), s.Name)
		ch <- prometheus.MustNewConstMetric(exportSent, prometheus.CounterValue, float64(s.Sent), s.Name)
		ch <- prometheus.MustNewConstMetric(exportLost, prometheus.CounterValue, float64(s.Lost), s.Name)
		ch <- prometheus.MustNewConstMetric(exportFailing, prometheus.GaugeValue, failing, s.Name)
		ch <- prometheus.MustNewConstMetric(exportStalled, prometheus.GaugeValue, stalled, s.Name)
		ch <- prometheus.MustNewConstMetric(exportSkipped, prometheus.CounterValue, float64(s.Skipped), s.Name)
	}
}
