package wire_test

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/tillward/tillward/cloud/wire"
)

// TestKinds holds that the table can be searched and that each of its words is one.
func TestKinds(t *testing.T) {
	forms := []string{"code", "codes", "number", "time", "duration", "hash", "id", "version", "address"}
	kinds := wire.AuditKinds()
	if !slices.IsSortedFunc(kinds, func(a, b wire.AuditKind) int { return strings.Compare(a.Name, b.Name) }) {
		t.Error("the table is not in order")
	}
	for i, k := range kinds {
		if got, ok := wire.AuditKindOf(k.Name); !ok || got != k || i > 0 && kinds[i-1].Name == k.Name {
			t.Errorf("%s is not found", k.Name)
		}
		if k.Subject != "" && !slices.Contains(forms, k.Subject) {
			t.Errorf("%s: form %q of its subject", k.Name, k.Subject)
		}
		if !slices.Contains([]string{"", wire.Success, wire.Failure, wire.Refused}, k.Outcome) || !slices.Contains([]string{"", "service", "by"}, k.Actor) {
			t.Errorf("%s: outcome %q, actor %q", k.Name, k.Outcome, k.Actor)
		}
		names := map[string]bool{}
		for field := range strings.FieldsSeq(k.Details) {
			name, form, _ := strings.Cut(field, ":")
			if !slices.Contains(forms, form) || names[name] || name == "" || name == "by" && k.Actor == "by" {
				t.Errorf("%s: detail %q", k.Name, field)
			}
			names[name] = true
		}
		if len(names) > 16 {
			t.Errorf("%s has %d details", k.Name, len(names))
		}
	}
	for _, none := range []string{"", "agent", "agent.stopped", "zzz"} {
		if _, ok := wire.AuditKindOf(none); ok {
			t.Errorf("%q is found", none)
		}
	}
}

// TestFit shows what becomes of a record: what fits stays, what does not is
// marked and named, and nothing of an unknown kind is told but its name.
func TestFit(t *testing.T) {
	for name, tt := range map[string]struct {
		in, want wire.AuditRecord
		misfits  []string
	}{
		"as it is to be": {
			in:   wire.AuditRecord{Kind: "link.down", Subject: "fleet.example:8883", Detail: map[string]string{"reason": "timeout"}},
			want: wire.AuditRecord{Kind: "link.down", Subject: "fleet.example:8883", Detail: map[string]string{"reason": "timeout"}},
		},
		"words of an error": {
			in:      wire.AuditRecord{Kind: "link.down", Subject: "fleet.example:8883", Detail: map[string]string{"reason": "read tcp: i/o timeout"}},
			want:    wire.AuditRecord{Kind: "link.down", Subject: "fleet.example:8883", Detail: map[string]string{"reason": "?"}},
			misfits: []string{"detail reason"},
		},
		"another detail": {
			in:      wire.AuditRecord{Kind: "link.down", Detail: map[string]string{"text": "timeout"}},
			want:    wire.AuditRecord{Kind: "link.down"},
			misfits: []string{"detail text"},
		},
		"nothing to say": {
			in:   wire.AuditRecord{Kind: "peripheral.fault", Subject: "printer-1", Detail: map[string]string{"was": "", "health": "Fault"}},
			want: wire.AuditRecord{Kind: "peripheral.fault", Subject: "printer-1", Detail: map[string]string{"health": "Fault"}},
		},
		"subject of words": {
			in:      wire.AuditRecord{Kind: "peripheral.fault", Subject: "the printer"},
			want:    wire.AuditRecord{Kind: "peripheral.fault", Subject: "?"},
			misfits: []string{"subject"},
		},
		"subject that its kind has not": {
			in:      wire.AuditRecord{Kind: "vault.opened", Subject: "x"},
			want:    wire.AuditRecord{Kind: "vault.opened", Outcome: wire.Success},
			misfits: []string{"subject"},
		},
		"by whom": {
			in:   wire.AuditRecord{Kind: "command.failed", Subject: "c1", Detail: map[string]string{"by": "ada", "args": "label level"}},
			want: wire.AuditRecord{Kind: "command.failed", Subject: "c1", Actor: "operator:ada", Outcome: wire.Failure, Detail: map[string]string{"args": "label level"}},
		},
		"by a poet": {
			in:      wire.AuditRecord{Kind: "command.done", Subject: "c1", Detail: map[string]string{"by": "ada of the hills"}},
			want:    wire.AuditRecord{Kind: "command.done", Subject: "c1", Actor: "operator:?", Outcome: wire.Success},
			misfits: []string{"actor"},
		},
		"one word of a list": {
			in:      wire.AuditRecord{Kind: "command.start", Subject: "c1", Detail: map[string]string{"args": "label a;b"}},
			want:    wire.AuditRecord{Kind: "command.start", Subject: "c1", Detail: map[string]string{"args": "label ?"}},
			misfits: []string{"detail args"},
		},
		"who it claims to be": {
			in:   wire.AuditRecord{Kind: "command.refused", Subject: "c1", Actor: "operator:root", Detail: map[string]string{"by": "root"}},
			want: wire.AuditRecord{Kind: "command.refused", Subject: "c1", Outcome: wire.Refused, Detail: map[string]string{"by": "root"}},
		},
		"unknown kind": {
			in:      wire.AuditRecord{Kind: "till.poem", Subject: "roses", Actor: "a", Outcome: "o", Detail: map[string]string{"line": "are red"}},
			want:    wire.AuditRecord{Kind: "till.poem"},
			misfits: []string{"kind"},
		},
		"no kind at all": {in: wire.AuditRecord{Kind: "a poem"}, want: wire.AuditRecord{Kind: "?"}, misfits: []string{"kind"}},
	} {
		t.Run(name, func(t *testing.T) {
			before := maps.Clone(tt.in.Detail)
			got, misfits := tt.in.Fit()
			if got.Kind != tt.want.Kind || got.Subject != tt.want.Subject || got.Actor != tt.want.Actor || got.Outcome != tt.want.Outcome || !maps.Equal(got.Detail, tt.want.Detail) {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
			if !slices.Equal(misfits, tt.misfits) {
				t.Errorf("misfits %q, want %q", misfits, tt.misfits)
			}
			if !maps.Equal(before, tt.in.Detail) {
				t.Errorf("the caller's details became %v", tt.in.Detail)
			}
			err := got.CheckKind()
			if unknown := slices.Equal(misfits, []string{"kind"}); (err != nil) != unknown {
				t.Errorf("what was made to fit: %v", err)
			}
			if len(misfits) > 0 && !errors.Is(tt.in.CheckKind(), wire.ErrMalformed) && name != "by a poet" {
				t.Errorf("what does not fit is taken: %v", tt.in.CheckKind())
			}
		})
	}
}

// TestForms shows of each form what it takes and what not; a mark is taken by all.
func TestForms(t *testing.T) {
	long := strings.Repeat("a", 600)
	for detail, tt := range map[[2]string]struct{ good, bad []string }{
		{"link.down", "reason"}: {
			[]string{"timeout", "M_COVER_OPEN", "boot.unknown-event", "7"},
			[]string{"a b", "a\nb", "é", "a/b", strings.Repeat("a", 65), "connection refused", "a:b"},
		},
		{"command.done", "args"}:            {[]string{"label", "label level"}, []string{" ", "a  b", "a,b", long}},
		{"command.done", "counter"}:         {[]string{"0", "-1", "18446744073709551615"}, []string{"-", "1.5", "0x1", "1 2", "123456789012345678901"}},
		{"update.metadata-old", "signed"}:   {[]string{"2026-11-26T18:30:00Z", "2026-11-26T18:30:00.25+01:00"}, []string{"today", "2026-11-26", "2026-11-26 18:30:00Z"}},
		{"clock.behind", "by"}:              {[]string{"1h2m3s", "500ms"}, []string{"an hour", "1 h", ""}},
		{"audit.countersigned", "hash"}:     {[]string{strings.Repeat("0a", 32)}, []string{"0a", strings.Repeat("0A", 32), strings.Repeat("g", 64), strings.Repeat("0", 129)}},
		{"audit.countersigned", "key"}:      {[]string{"online-1", "a@b.example", "3:0f"}, []string{"a b", "a/b", strings.Repeat("a", 97)}},
		{"update.offered", "target"}:        {[]string{"os/vend-1/stable/1.2.3", "1.2.3~rc1+b"}, []string{"a b", "a\\b", "a?b", long}},
		{"service.found", "server_name"}:    {[]string{"https://[::1]:8444/x?y=1", "/media/stick"}, []string{"a b", "a\"b", "<a>", long}},
		{"attest.attested", "until"}:        {[]string{"2026-11-26T18:30:00Z"}, []string{"soon"}},
		{"identity.renewed", "certificate"}: {[]string{"0f3a"}, []string{"0f 3a"}},
	} {
		for _, v := range append(tt.good, wire.AuditMisfit, wire.AuditWithheld) {
			if r := (wire.AuditRecord{Kind: detail[0], Detail: map[string]string{detail[1]: v}}); r.CheckKind() != nil {
				t.Errorf("%s %s does not take %q: %v", detail[0], detail[1], v, r.CheckKind())
			}
		}
		for _, v := range tt.bad {
			if r := (wire.AuditRecord{Kind: detail[0], Detail: map[string]string{detail[1]: v}}); !errors.Is(r.CheckKind(), wire.ErrMalformed) {
				t.Errorf("%s %s takes %q", detail[0], detail[1], v)
			}
		}
	}
}

// FuzzFit holds that whatever is made to fit does, and that it fits at once.
func FuzzFit(f *testing.F) {
	f.Add("link.down", "fleet.example:8883", "reason", "timeout", "by", "ada")
	f.Add("command.done", "c1", "args", "a b", "by", "ada of the hills")
	f.Add("no kind", "\xff", "\n", "é", "", "")
	f.Fuzz(func(t *testing.T, kind, subject, n1, v1, n2, v2 string) {
		r, _ := wire.AuditRecord{Seq: 1, Severity: "info", Kind: kind, Subject: subject, Detail: map[string]string{n1: v1, n2: v2}}.Fit()
		if _, known := wire.AuditKindOf(kind); known && r.CheckKind() != nil {
			t.Errorf("%+v: %v", r, r.CheckKind())
		}
		if _, err := wire.SealAudit(r); err != nil {
			t.Errorf("%+v: %v", r, err)
		}
		for _, s := range append(slices.Collect(maps.Values(r.Detail)), r.Subject, r.Actor) {
			if strings.ContainsAny(s, "\n\x00\"") || len(s) > wire.MaxText {
				t.Errorf("%q is told", s)
			}
		}
	})
}
