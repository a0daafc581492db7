package update

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Hours are stretches of the week by the clock on the wall, as in "22:00-05:00"
// or "mon-fri 22:00-05:00, sun 00:00-24:00". None are all the time.
type Hours struct {
	text  string
	spans []hours
}

// hours begin on each of some days; past midnight they last into the next.
type hours struct {
	days     [7]bool // from Sunday
	from, to int     // minutes of the day
}

const dayMinutes = 24 * 60

var weekdays = map[string]int{"sun": 0, "mon": 1, "tue": 2, "wed": 3, "thu": 4, "fri": 5, "sat": 6}

// UnmarshalText implements encoding.TextUnmarshaler.
func (h *Hours) UnmarshalText(b []byte) error {
	out := Hours{text: string(b)}
	if strings.TrimSpace(out.text) == "" {
		*h = Hours{}
		return nil
	}
	for part := range strings.SplitSeq(out.text, ",") {
		s, err := parseHours(strings.Fields(strings.ToLower(part)))
		if err != nil {
			return fmt.Errorf("%q: %w; write hours like \"22:00-05:00\" or \"mon-fri 22:00-05:00, sun 00:00-24:00\"", strings.TrimSpace(part), err)
		}
		out.spans = append(out.spans, s)
	}
	*h = out
	return nil
}

// MarshalText implements encoding.TextMarshaler.
func (h Hours) MarshalText() ([]byte, error) { return []byte(h.text), nil }

// String returns the hours as they were written.
func (h Hours) String() string { return h.text }

// Open reports whether t, in its own time zone, lies within.
func (h Hours) Open(t time.Time) bool {
	if len(h.spans) == 0 {
		return true
	}
	now, day := t.Hour()*60+t.Minute(), int(t.Weekday())
	before := (day + 6) % 7
	for _, s := range h.spans {
		if s.days[day] && now >= s.from && (now < s.to || s.to <= s.from) || s.days[before] && s.to <= s.from && now < s.to {
			return true
		}
	}
	return false
}

func parseHours(words []string) (hours, error) {
	var s hours
	switch len(words) {
	case 1:
		for i := range s.days {
			s.days[i] = true
		}
	case 2:
		from, to, ranged := strings.Cut(words[0], "-")
		first, ok := weekdays[from]
		last, also := weekdays[to]
		if !ranged {
			last, also = first, ok
		}
		if !ok || !also {
			return s, fmt.Errorf("%q is no day of the week", words[0])
		}
		for d := first; ; d = (d + 1) % 7 {
			s.days[d] = true
			if d == last {
				break
			}
		}
	default:
		return s, fmt.Errorf("%d words", len(words))
	}
	from, to, _ := strings.Cut(words[len(words)-1], "-")
	var err error
	if s.from, err = minutes(from); err != nil {
		return s, err
	}
	if s.to, err = minutes(to); err != nil {
		return s, err
	}
	if s.from == dayMinutes || s.from == s.to {
		return s, fmt.Errorf("%q is empty", words[len(words)-1])
	}
	return s, nil
}

func minutes(s string) (int, error) {
	hh, mm, ok := strings.Cut(s, ":")
	h, err := strconv.ParseUint(hh, 10, 8)
	if !ok || err != nil || len(hh) != 2 {
		return 0, fmt.Errorf("%q is no time of the day", s)
	}
	m, err := strconv.ParseUint(mm, 10, 8)
	if err != nil || len(mm) != 2 || m > 59 || h*60+m > dayMinutes {
		return 0, fmt.Errorf("%q is no time of the day", s)
	}
	return int(h*60 + m), nil // #nosec G115 -- at most 1440
}
