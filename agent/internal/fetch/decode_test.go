package fetch

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Inside the package: what a header says reaches nobody else.

func TestContentRange(t *testing.T) {
	for h, want := range map[string][3]int64{
		"bytes 0-0/1":                    {0, 1, 1},
		"bytes 5-9/100":                  {5, 10, 100},
		"bytes 5-9/*":                    {5, 10, -1},
		"":                               {-1},
		"bytes":                          {-1},
		"bytes 5-9":                      {-1},
		"bytes */100":                    {-1},
		"bytes 5-9/9":                    {-1},
		"bytes 9-5/100":                  {-1},
		"bytes -5-9/100":                 {-1},
		"bytes +5-9/100":                 {-1},
		"bytes 5-9x/100":                 {-1},
		"bytes 5-9/100 ":                 {-1},
		"items 5-9/100":                  {-1},
		"bytes 5-99999999999999999999/*": {-1},
		"bytes 0-9223372036854775807/*":  {-1},
		"bytes 18446744073709551615-18446744073709551616/100": {-1},
	} {
		from, to, total, ok := contentRange(h)
		if got := [3]int64{from, to, total}; ok != (want[0] >= 0) || ok && got != want {
			t.Errorf("%q: got %v %v, want %v", h, got, ok, want)
		}
	}
}

func TestNear(t *testing.T) {
	for address, want := range map[string]bool{
		"10.0.0.7:8446": true, "192.168.1.2:8446": true, "172.16.0.1:8446": true, "127.0.0.1:8446": true, "[::1]:8446": true,
		"169.254.1.1:8446": true, "[fe80::1%eth0]:8446": true, "[fd00::1]:8446": true, "100.64.0.1:8446": true, "[::ffff:10.0.0.1]:8446": true,
		"203.0.113.5:443": false, "[2001:db8::1]:443": false, "0.0.0.0:8446": false, "224.0.0.1:8446": false, "[::ffff:203.0.113.5]:8446": false,
		"100.128.0.1:8446": false, "no address": false,
		"10.0.0.7:9100": false, "10.0.0.7:9101": false, "127.0.0.1:443": false, "10.0.0.7:23": false, // printers print what they get
	} {
		if err := near("tcp", address, nil); (err == nil) != want {
			t.Errorf("%s: got %v, want allowed: %v", address, err, want)
		}
	}
}

func FuzzContentRange(f *testing.F) {
	f.Add("bytes 5-9/100")
	f.Add("bytes 0-0/*")
	f.Fuzz(func(t *testing.T, h string) {
		from, to, total, ok := contentRange(h)
		if !ok {
			return
		}
		if from < 0 || to <= from || total >= 0 && total < to {
			t.Fatalf("%q: took %d to %d of %d", h, from, to, total)
		}
		again := fmt.Sprintf("bytes %d-%d/", from, to-1)
		if total < 0 {
			again += "*"
		} else {
			again += fmt.Sprint(total)
		}
		if f2, t2, n2, ok := contentRange(again); !ok || f2 != from || t2 != to || n2 != total {
			t.Fatalf("%q: read as %d %d %d, and %q as %d %d %d", h, from, to, total, again, f2, t2, n2)
		}
	})
}

func FuzzPatience(f *testing.F) {
	for _, h := range []string{"", "90", "-1", "99999999999999999999", "Sat, 01 Jan 2000 00:01:00 GMT", "Fri, 31 Dec 9999 23:59:59 GMT"} {
		f.Add(h)
	}
	f.Fuzz(func(t *testing.T, h string) {
		if d := patience(h); d < 0 || d > 5*time.Minute {
			t.Fatalf("%q: waits %s", h, d)
		}
	})
}

// Whatever the disk made of the ledger, no more than a day's bytes are granted.
func FuzzLedger(f *testing.F) {
	f.Add([]byte(`{"since":"2026-01-01T00:00:00Z","spent":5,"ran":3}`))
	f.Add([]byte(`{"since":"9999-01-01T00:00:00Z","spent":-5,"ran":-3}`))
	f.Add([]byte(`{"since":"2026-01-01T00:00:00Z","spent":9223372036854775807,"ran":9223372036854775807}`))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, raw []byte) {
		b := &budget{path: filepath.Join(dir, "budget.json"), daily: 100, step: func(string) {}}
		if err := os.WriteFile(b.path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		_ = b.load() // is said, and is safe
		if n, _ := b.left(); n < 0 || n > 100 {
			t.Fatalf("%q: %d bytes are left", raw, n)
		}
		var sum int
		for range 3 {
			n, _ := b.take(1000)
			sum += n
		}
		if sum > 100 {
			t.Fatalf("%q: granted %d bytes", raw, sum)
		}
	})
}
