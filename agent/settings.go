package agent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/tillward/tillward/agent/internal/spool"
	"github.com/tillward/tillward/hal"
)

// settings are what an operator may change from afar with set-config. They lie
// over the configuration file and are kept on the state partition.
type settings struct {
	spool *spool.Spool

	mu     sync.Mutex
	values map[string]string
}

const keySettings = "settings"

// settingRules says which settings exist and what each may be.
var settingRules = map[string]func(string) error{
	"label": func(s string) error {
		if len(s) > 64 || !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl) {
			return errors.New("at most 64 bytes of printable text")
		}
		if hal.MayHoldPAN(s) { // it would be told with every state
			return errors.New("nothing that could be a card number")
		}
		return nil
	},
	"poll_s":      seconds(5, 3600),
	"telemetry_s": seconds(1, 3600),
	"log_level": func(s string) error {
		if !slices.Contains([]string{"debug", "info", "warn", "error"}, s) {
			return errors.New("debug, info, warn or error")
		}
		return nil
	},
}

func seconds(low, high int) func(string) error {
	return func(s string) error {
		n, err := strconv.Atoi(s)
		if err != nil || n < low || n > high {
			return fmt.Errorf("a whole number of seconds from %d to %d", low, high)
		}
		return nil
	}
}

func openSettings(ctx context.Context, sp *spool.Spool) (*settings, error) {
	s := &settings{spool: sp, values: make(map[string]string)}
	b, err := sp.Load(ctx, keySettings)
	if err != nil {
		return nil, fmt.Errorf("read settings: %w", err)
	}
	if len(b) > 0 {
		if err := json.Unmarshal(b, &s.values); err != nil {
			return nil, fmt.Errorf("read settings: %w", err)
		}
	}
	return s, nil
}

// validate says what is wrong with a change.
func validate(change map[string]string) error {
	for k, v := range change {
		rule, ok := settingRules[k]
		if !ok {
			return fmt.Errorf("setting %q: only label, poll_s, telemetry_s and log_level can be set", k)
		}
		if err := rule(v); err != nil {
			return fmt.Errorf("setting %s: must be %w", k, err)
		}
	}
	return nil
}

// set checks every change before it makes any, and unsets others with it.
func (s *settings) set(ctx context.Context, change map[string]string, unset ...string) error {
	if len(change)+len(unset) == 0 {
		return errors.New("no settings given: label, poll_s, telemetry_s and log_level can be set")
	}
	if err := validate(change); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	next := maps.Clone(s.values)
	for _, k := range unset {
		delete(next, k)
	}
	maps.Copy(next, change)
	b, err := json.Marshal(next)
	if err != nil {
		return fmt.Errorf("encode settings: %w", err)
	}
	if err := s.spool.Save(ctx, keySettings, b, "", nil); err != nil {
		return fmt.Errorf("keep settings: %w", err)
	}
	s.values = next
	return nil
}

func (s *settings) get(key string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.values[key]
}

// all returns what is set.
func (s *settings) all() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.values)
}

// period returns the setting key as a duration, or def when it is not set.
func (s *settings) period(key string, def time.Duration) time.Duration {
	n, err := strconv.Atoi(s.get(key))
	if err != nil {
		return def
	}
	return time.Duration(n) * time.Second
}

// hash names the settings in force; the service compares it with what it sent.
func (s *settings) hash() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, _ := json.Marshal(s.values) // a map of strings always encodes, keys sorted
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8])
}

// change sets and unsets, and has it take effect.
func (a *Agent) change(ctx context.Context, set map[string]string, unset ...string) error {
	if err := a.settings.set(ctx, set, unset...); err != nil {
		return err
	}
	a.applyLevel()
	poke(a.again)
	return nil
}

// box is the agent's settings as a configuration release sees them; it
// implements setting.Box.
type box struct{ a *Agent }

// Validate implements setting.Box.
func (box) Validate(values map[string]string) error { return validate(values) }

// Apply implements setting.Box.
func (b box) Apply(ctx context.Context, set map[string]string, unset []string) error {
	if len(set)+len(unset) == 0 {
		return nil
	}
	return b.a.change(ctx, set, unset...)
}

// Current implements setting.Box.
func (b box) Current() map[string]string { return b.a.settings.all() }
