package export

import (
	"bytes"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

const (
	maxLine  = 8192 // bytes of a line with its syslog header
	maxValue = 256  // bytes of what is not detail
	facility = 13   // log audit [RFC 5424, 6.2.1]
	sdID     = "tillward@32473"
	sdDetail = "detail@32473"
)

// ranks of the severities: of syslog, CEF and OCSF.
var ranks = map[string]struct{ syslog, cef, ocsf int }{"info": {6, 3, 1}, "warn": {4, 6, 3}, "alarm": {1, 9, 4}}

// renderer makes lines.
type renderer struct {
	format, host, version string
	frame                 bool // with a syslog header
}

// pair is one detail.
type pair struct{ key, value string }

// event is an entry in the words of all formats.
type event struct {
	fleet.TrailEntry
	class
	prev    int64  // number of the entry that its receiver got before
	trail   string // "service", or the device
	details []pair // by key
	cut     bool   // something is missing
}

// render makes the line of e: at most maxLine bytes. Where it would be longer,
// first the values of its detail are shortened and then the last of them left
// out, and the line says so. prev is the number of the entry that the receiver
// got before.
func (r renderer) render(e fleet.TrailEntry, prev int64) []byte {
	v := event{TrailEntry: e, prev: prev, class: of(e.Kind), trail: string(e.Device)}
	for _, s := range v.fields() {
		whole := clean(*s, "\t\r\n")
		*s = cut(whole, maxValue)
		v.cut = v.cut || *s != whole
	}
	if v.trail == "" {
		v.trail = "service"
	}
	for _, k := range slices.Sorted(maps.Keys(e.Detail)) {
		v.details = append(v.details, pair{cut(clean(k, ""), 64), clean(e.Detail[k], "\t\r\n")})
	}
	b := r.line(v)
	for most := 1024; len(b) > maxLine; most /= 4 {
		v.cut = true
		switch n := len(v.details); {
		case n > 0 && most < 64:
			v.details = v.details[:n/2]
		case n > 0:
			for i := range v.details {
				v.details[i].value = cut(v.details[i].value, most)
			}
		default: // escapes make the rest so long
			for _, s := range v.fields() {
				*s = cut(*s, len(*s)/2)
			}
		}
		b = r.line(v)
	}
	return b
}

// fields are the texts of an event that anybody may have chosen.
func (v *event) fields() []*string {
	return []*string{&v.Kind, &v.Actor, &v.Subject, &v.trail, (*string)(&v.Tenant), &v.Severity, &v.Outcome, &v.Site}
}

// message is what a person reads.
func (v *event) message() string {
	if v.Subject == "" {
		return v.name
	}
	return v.name + ": " + v.Subject
}

func (r renderer) line(v event) []byte {
	var b bytes.Buffer
	if r.frame {
		r.header(&b, v)
	}
	switch r.format {
	case FormatCEF:
		r.cef(&b, v)
	case FormatOCSF:
		r.ocsf(&b, v)
	default:
		b.WriteString(clean(v.message(), ""))
	}
	return b.Bytes()
}

// header is HEADER and STRUCTURED-DATA of RFC 5424.
func (r renderer) header(b *bytes.Buffer, v event) {
	rank, ok := ranks[v.Severity]
	if !ok {
		rank = ranks["info"]
	}
	host := v.trail
	if v.Device == "" {
		host = r.host
	}
	b.WriteString("<" + strconv.Itoa(8*facility+rank.syslog) + ">1 " + v.At.UTC().Format("2006-01-02T15:04:05.000Z") + " ")
	b.WriteString(name(host, 255) + " tillward - " + name(v.Kind, 32) + " [" + sdID)
	param := func(k, val string) {
		if val != "" {
			b.WriteString(" " + k + `="` + escapeSD(val) + `"`)
		}
	}
	param("n", strconv.FormatInt(v.N, 10))
	param("prev", strconv.FormatInt(v.prev, 10))
	param("trail", v.trail)
	param("seq", strconv.FormatUint(v.Seq, 10))
	if v.cut {
		param("truncated", "1")
	}
	if r.format == FormatSyslog {
		param("class", strconv.Itoa(v.id))
		param("kind", v.Kind)
		param("severity", v.Severity)
		param("tenant", string(v.Tenant))
		param("actor", v.Actor)
		param("subject", v.Subject)
		param("outcome", v.Outcome)
		param("site", v.Site)
		param("stored", stamp(v.StoredAt))
		param("hash", hash(v))
		if len(v.details) > 0 {
			b.WriteString("][" + sdDetail)
			for _, d := range v.details {
				param(sdName(d.key), d.value)
			}
		}
	}
	b.WriteString("] ")
}

func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339Nano)
}

// hash is that of the entry in its trail; a test event has none.
func hash(v event) string {
	if v.Hash == [32]byte{} {
		return ""
	}
	const digits = "0123456789abcdef"
	out := make([]byte, 0, 64)
	for _, c := range v.Hash {
		out = append(out, digits[c>>4], digits[c&15])
	}
	return string(out)
}

// cef is ArcSight's Common Event Format, version 0.
func (r renderer) cef(b *bytes.Buffer, v event) {
	rank, ok := ranks[v.Severity]
	if !ok {
		rank = ranks["info"]
	}
	b.WriteString("CEF:0|Tillward|Tillward")
	for _, s := range []string{r.version, strconv.Itoa(v.id), v.name, strconv.Itoa(rank.cef)} {
		b.WriteString("|" + escapeHeader(s))
	}
	b.WriteString("|")
	first := true
	put := func(k, val string) {
		if val == "" {
			return
		}
		if !first {
			b.WriteByte(' ')
		}
		first = false
		b.WriteString(k + "=" + escapeExtension(val))
	}
	put("end", strconv.FormatInt(v.At.UnixMilli(), 10))
	if !v.StoredAt.IsZero() {
		put("rt", strconv.FormatInt(v.StoredAt.UnixMilli(), 10))
	}
	put("externalId", strconv.FormatInt(v.N, 10))
	put("cat", v.Kind)
	put("msg", v.message())
	put("suser", v.Actor)
	put("outcome", v.Outcome)
	if v.Device != "" {
		put("deviceExternalId", v.trail)
	}
	put("cn1Label", "seq")
	put("cn1", strconv.FormatUint(v.Seq, 10))
	put("cn2Label", "prev")
	put("cn2", strconv.FormatInt(v.prev, 10))
	for i, f := range []pair{{"trail", v.trail}, {"subject", v.Subject}, {"tenant", string(v.Tenant)}, {"severity", v.Severity}, {"hash", hash(v)}, {"site", v.Site}} {
		if f.value != "" {
			put("cs"+strconv.Itoa(i+1)+"Label", f.key)
			put("cs"+strconv.Itoa(i+1), f.value)
		}
	}
	if v.cut {
		put("TillwardTruncated", "1")
	}
	for _, d := range v.details {
		put("ad."+cefName(d.key), d.value)
	}
}

// clean replaces what could end a line or steer a terminal, and what is no
// UTF-8, except for what is kept.
func clean(s, keep string) string {
	return strings.Map(func(c rune) rune {
		if (unicode.IsControl(c) || unicode.In(c, unicode.Zl, unicode.Zp, unicode.Bidi_Control)) && !strings.ContainsRune(keep, c) {
			return unicode.ReplacementChar
		}
		return c
	}, strings.ToValidUTF8(s, string(unicode.ReplacementChar)))
}

// The escapes of each place [RFC 5424, 6.3.3; CEF 25, Character Encoding].
var (
	sdEscapes        = strings.NewReplacer(`\`, `\\`, `"`, `\"`, `]`, `\]`)
	headerEscapes    = strings.NewReplacer(`\`, `\\`, `|`, `\|`)
	extensionEscapes = strings.NewReplacer(`\`, `\\`, `=`, `\=`, "\r", `\r`, "\n", `\n`)
)

func escapeSD(s string) string        { return sdEscapes.Replace(clean(s, "")) }
func escapeHeader(s string) string    { return headerEscapes.Replace(clean(s, "")) }
func escapeExtension(s string) string { return extensionEscapes.Replace(clean(s, "\r\n")) }

// name is s as a field of a syslog header: printable ASCII, "-" for nothing.
func name(s string, most int) string {
	s = strings.Map(func(c rune) rune {
		if c < 33 || c > 126 {
			return '?'
		}
		return c
	}, s)
	if s = cut(s, most); s == "" {
		return "-"
	}
	return s
}

// sdName is s as the name of a parameter.
func sdName(s string) string {
	return strings.Map(func(c rune) rune {
		if c == '=' || c == ']' || c == '"' {
			return '_'
		}
		return c
	}, name(s, 32))
}

// cefName is s as the name of an extension.
func cefName(s string) string {
	s = strings.Map(func(c rune) rune {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' {
			return c
		}
		return '_'
	}, s)
	if s == "" {
		return "_"
	}
	return s
}
