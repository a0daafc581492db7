package main

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestFollow: the newest come in the order of storing, then what is stored
// later, by the cursor of each answer, until somebody interrupts.
func TestFollow(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	entry := func(n int) string {
		return fmt.Sprintf(`{"n":%d,"seq":%d,"kind":"link.up","severity":"info","actor":"anna"}`, n, n)
	}
	asked := 0
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked++
		q, answer := r.URL.Query(), ""
		switch {
		case q.Get("order") != "asc" && q.Get("from") != "" && q.Get("what") == "link.":
			answer = `{"items":[` + entry(2) + `,` + entry(1) + `],"next":"older","newest":"c2"}`
		case asked == 2 && q.Get("after") == "c2" && !q.Has("from"):
			answer = `{"items":[` + entry(3) + `],"next":"c3","newest":"c9"}` // there is more
		case asked == 3 && q.Get("after") == "c3":
			answer = `{"items":[` + entry(4) + `],"next":"","newest":"c4"}`
		case asked == 4 && q.Get("after") == "c4":
			answer = `{"items":[],"next":"","newest":"c4"}`
			cancel()
		default:
			t.Errorf("request %d: %s", asked, r.URL)
			cancel()
		}
		_, _ = w.Write([]byte(answer))
	}))
	defer srv.Close()
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("twt_x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var out, said bytes.Buffer
	code := run(ctx, []string{"--json", "--server", srv.URL, "--token-file", token, "audit", "search", "--what", "link.", "--since", "1h", "--limit", "2", "--follow"}, &out, &said)
	if want := entry(1) + "\n" + entry(2) + "\n" + entry(3) + "\n" + entry(4) + "\n"; code != 0 || out.String() != want {
		t.Errorf("code %d, got\n%swant\n%s%s", code, &out, want, &said)
	}
}

func TestMoment(t *testing.T) {
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	for text, want := range map[string]time.Time{
		"90m": now.Add(-90 * time.Minute), "7d": now.AddDate(0, 0, -7), "2w": now.AddDate(0, 0, -14), "36h": now.Add(-36 * time.Hour),
		"2026-11-01T18:30:00Z": time.Date(2026, 11, 1, 18, 30, 0, 0, time.UTC), "2026-11-01": time.Date(2026, 11, 1, 0, 0, 0, 0, time.Local),
		"2026-11-01 18:30": time.Date(2026, 11, 1, 18, 30, 0, 0, time.Local),
	} {
		if got, err := moment(text, now); err != nil || !got.Equal(want) {
			t.Errorf("%q: got %v, %v, want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "d", "7", "7y", "-7d", "yesterday", "2026-13-01", "99999999d"} {
		if got, err := moment(text, now); err == nil {
			t.Errorf("%q: got %v, want an error", text, got)
		}
	}
}
