package cloud

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

// What the service itself does is in its trail, too: that it began and ended,
// what of its configuration is another, and which certificates it gave itself.

// seenConfig is the file in the data folder that holds digests of the
// configuration as it was at the last start.
const seenConfig = "config.seen.json"

// begun notes the start. A service that was cut off has left no entry of its end.
func (s *Service) begun(ctx context.Context) {
	detail, severity := map[string]string{"version": Version}, "info"
	last, err := s.store.SearchTrails(ctx, s.tenant, fleet.TrailQuery{What: "service.", Trail: fleet.TrailService}, fleet.Page{Limit: 1})
	if err != nil {
		s.log.Error("audit", slog.String("kind", "service.started"), slog.Any("err", err))
	}
	if len(last.Items) > 0 && last.Items[0].Kind != "service.stopped" {
		severity, detail["before"] = "warn", "cut off"
	}
	s.audit(ctx, "service.started", severity, "service", detail)
	changed, err := s.reconfigured()
	if err != nil {
		s.log.Error("tell what of the configuration has changed", slog.Any("err", err))
	}
	if len(changed) > 0 {
		text := strings.Join(changed, " ")
		s.audit(ctx, "service.configured", "info", "service", map[string]string{"keys": text[:min(len(text), 400)], "count": strconv.Itoa(len(changed))})
	}
}

// ended notes the end.
func (s *Service) ended(err error) {
	detail, severity := map[string]string{"version": Version}, "info"
	if err != nil {
		severity, detail["reason"] = "alarm", fmt.Sprintf("%.300v", err)
	}
	s.audit(context.Background(), "service.stopped", severity, "service", detail)
}

// reconfigured compares the configuration with that of the last start, and
// returns the names of the keys that say something else. Values are kept as
// digests: some of them are nobody's business.
func (s *Service) reconfigured() (changed []string, err error) {
	var tree map[string]any
	if err := toml.Unmarshal([]byte(s.cfg.String()), &tree); err != nil {
		return nil, err
	}
	now, was := map[string]string{}, map[string]string{}
	digests("", tree, now)
	path := filepath.Join(s.cfg.DataDir, seenConfig)
	switch b, err := os.ReadFile(path); { // #nosec G304 -- in the data folder
	case errors.Is(err, fs.ErrNotExist): // the first start: nothing has changed
		was = now
	case err != nil:
		return nil, err
	default:
		if err := json.Unmarshal(b, &was); err != nil { // it was cut off while it wrote
			was = map[string]string{}
		}
	}
	for _, k := range slices.Sorted(maps.Keys(now)) {
		if was[k] != now[k] {
			changed = append(changed, k)
		}
	}
	for k := range was {
		if _, ok := now[k]; !ok {
			changed = append(changed, k)
		}
	}
	slices.Sort(changed)
	b, err := json.Marshal(now)
	if err != nil {
		return changed, err
	}
	return changed, os.WriteFile(path, b, 0o600)
}

// digests puts the digest of each value below v into out, by the name of its key.
func digests(name string, v any, out map[string]string) {
	join := func(k string) string { return strings.TrimPrefix(name+"."+k, ".") }
	switch x := v.(type) {
	case map[string]any:
		for k, v := range x {
			digests(join(k), v, out)
		}
		return
	case []any:
		if len(x) > 0 {
			if _, tables := x[0].(map[string]any); tables {
				for i, v := range x {
					digests(join(strconv.Itoa(i)), v, out)
				}
				return
			}
		}
	}
	sum := sha256.Sum256(fmt.Append(nil, v))
	out[name] = hex.EncodeToString(sum[:8])
}
