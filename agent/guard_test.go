package agent

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/tillward/tillward/hal"
)

const pan = "4111 1111-1111.1111"

// quoted is something that shows a number only when it is logged.
type quoted struct{ n string }

func (q quoted) LogValue() slog.Value { return slog.GroupValue(slog.String("n", q.n)) }

// TestGuardedLog holds that a line with a card number in any part of it is not
// written, and that every other line is; the twin shows what happens without.
func TestGuardedLog(t *testing.T) {
	lines := map[string]func(*slog.Logger){
		"message":          func(l *slog.Logger) { l.Info("card " + pan) },
		"attribute":        func(l *slog.Logger) { l.Warn("x", "card", pan) },
		"key":              func(l *slog.Logger) { l.Warn("x", pan, 1) }, //nolint:sloglint // that is what is tested
		"error":            func(l *slog.Logger) { l.Error("x", "err", fmt.Errorf("read: %w", errors.New(pan))) },
		"group":            func(l *slog.Logger) { l.Info("x", slog.Group("a", slog.Group("b", slog.String("c", pan)))) },
		"with":             func(l *slog.Logger) { l.With("card", pan).Info("x") },
		"with group":       func(l *slog.Logger) { l.WithGroup("g").Info("x", "card", pan) },
		"group's name":     func(l *slog.Logger) { l.WithGroup(pan).Info("x", "a", 1) },
		"value in the end": func(l *slog.Logger) { l.Info("x", "card", quoted{pan}) },
		"anything":         func(l *slog.Logger) { l.Info("x", "card", struct{ N []byte }{[]byte("4")}, "n", 4111111111111111) },
		"track":            func(l *slog.Logger) { l.Info("%B4111^A/B^2512") },
		"two lines":        func(l *slog.Logger) { l.Info("first\n;4111111111111111=2512") },
	}
	for name, log := range lines {
		var out, plain bytes.Buffer
		g := new(Guard)
		guarded := slog.New(slog.NewTextHandler(g.Writer(&out), nil))
		guarded.Info("before")
		log(guarded)
		guarded.Info("after")
		if s := out.String(); strings.Contains(s, "1111") || strings.Contains(s, "%B") || g.Dropped() != 1 || strings.Count(s, "\n") != 3 ||
			!strings.Contains(s, droppedLine) || !strings.Contains(s, "before") || !strings.Contains(s, "after") {
			t.Errorf("%s: dropped %d, logged %s", name, g.Dropped(), s)
		}
		log(slog.New(slog.NewTextHandler(&plain, nil)))
		if !hal.MayHoldPAN(plain.String()) {
			t.Errorf("%s: without a guard there is no card number either: %s", name, plain.String())
		}
	}
}

// TestGuardedTexts holds that results and audit records lose what could be a card
// number and nothing else; digests stay, however many digits they have.
func TestGuardedTexts(t *testing.T) {
	g := new(Guard)
	digest := strings.Repeat("4111111111111111abcdef", 3)[:64]
	if !hal.MayHoldPAN(digest) {
		t.Fatal("the digest is harmless anyway")
	}
	for s, drop := range map[string]bool{
		"": false, "peripheral printer-1": false, pan: true, "x" + pan + "y": true, "hash " + digest + ".": false, digest: false,
		digest + " " + pan: true, pan + " " + digest: true, digest + "0": true, "g" + digest: true, digest[1:]: true, "0" + digest[1:]: false,
		strings.Repeat("4111111111111111", 4):                 true, // hex, and no letters
		"abcdefabcde" + strings.Repeat("4", 37) + digest[:16]: true, // too few
		strings.ToUpper(digest):                               true,
	} {
		if got := g.text(s); (got == droppedText) != drop || !drop && got != s {
			t.Errorf("%q: got %q", s, got)
		}
	}
	out := "first\ncard " + pan + "\nPCR 0 " + digest + "\nlast"
	if got := string(g.output([]byte(out))); got != "first\n"+droppedText+"\nPCR 0 "+digest+"\nlast" {
		t.Errorf("output %q", got)
	}
	if got := g.output([]byte("a\nb")); string(got) != "a\nb" {
		t.Errorf("output %q", got)
	}
}

// FuzzGuard holds that what is let through is harmless once its digests are out.
func FuzzGuard(f *testing.F) {
	for _, s := range []string{"", pan, strings.Repeat("ab12", 16), strings.Repeat("ab12", 16) + pan, "é" + strings.Repeat("0", 64), "\xff" + strings.Repeat("f", 64)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		rest := withoutDigests(s)
		if len(rest) > len(s) {
			t.Errorf("%q grew to %q", s, rest)
		}
		if again := withoutDigests(rest); again != rest && !strings.Contains(rest, "#") {
			t.Errorf("%q, then %q", rest, again)
		}
		for _, word := range strings.FieldsFunc(s, func(r rune) bool { return r < '0' || r > 'z' }) {
			if len(word) < 64 && !strings.Contains(rest, word) {
				t.Errorf("%q lost %q", s, word)
			}
		}
		if got := new(Guard).text(s); got != droppedText && hal.MayHoldPAN(withoutDigests(got)) {
			t.Errorf("%q passes", got)
		}
	})
}
