package brcheck

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// menu is what Config.in and all that it sources say.
type menu struct {
	symbols []symbol
	sourced []string // files, Config.in aside
	wrong   []string
}

type symbol struct {
	name, kind, prompt string
	help               bool
	choice             bool     // one of a choice
	refs               []string // names in what it depends on, selects and defaults to
	where              string
}

var (
	reConfig = regexp.MustCompile(`^config\s+([A-Z0-9_]+)$`)
	reKind   = regexp.MustCompile(`^(bool|string|int|hex|tristate)(?:\s+"(.*)")?$`)
	reSource = regexp.MustCompile(`^source\s+"\$BR2_EXTERNAL_TILLWARD_PATH/(.+)"$`)
	reName   = regexp.MustCompile(`\bBR2_[A-Za-z0-9_]+\b`)
	reQuoted = regexp.MustCompile(`"[^"]*"`)
	opens    = map[string]string{"menu": "endmenu", "choice": "endchoice", "if": "endif"}
)

// parseMenu reads the Kconfig language as far as a tree like ours uses it; a
// line it does not know is wrong.
func parseMenu(x *external, file string) (*menu, error) {
	m := new(menu)
	return m, m.parse(x, file)
}

func (m *menu) parse(x *external, file string) error {
	text, err := x.read(file)
	if err != nil {
		return err
	}
	var open []string
	var now *symbol
	in := "" // what the lines below belong to
	end := func() {
		if now != nil {
			m.symbols = append(m.symbols, *now)
			now = nil
		}
	}
	text = strings.ReplaceAll(text, "\\\n", " ")
	n := 0
	for line := range strings.Lines(text) {
		n++
		where := fmt.Sprintf("%s:%d", file, n)
		bad := func(what string) { m.wrong = append(m.wrong, where+": "+what) }
		deep := strings.HasPrefix(line, "\t")
		code, _, _ := strings.Cut(strings.TrimSpace(line), " # ")
		code = strings.TrimSpace(code)
		word, rest, _ := strings.Cut(code, " ")
		if in == "help" {
			if strings.HasPrefix(line, "\t  ") {
				if now != nil {
					now.help = true
				}
				continue
			}
			if strings.TrimSpace(line) == "" {
				continue
			}
		}
		if code == "" || strings.HasPrefix(code, "#") {
			continue
		}
		if !deep {
			end()
			in = word
		}
		switch {
		case reConfig.MatchString(code):
			now = &symbol{name: reConfig.FindStringSubmatch(code)[1], where: where, choice: slices.Contains(open, "endchoice")}
		case reSource.MatchString(code):
			name := reSource.FindStringSubmatch(code)[1]
			m.sourced = append(m.sourced, name)
			if !x.exists(name) {
				bad(name + " is not there")
				continue
			}
			if err := m.parse(x, name); err != nil {
				return err
			}
		case !deep && opens[word] != "":
			open = append(open, opens[word])
		case !deep && strings.HasPrefix(word, "end"):
			if len(open) == 0 || open[len(open)-1] != word {
				bad(word + " ends nothing")
				continue
			}
			open = open[:len(open)-1]
		case !deep && word == "comment":
		case deep && reKind.MatchString(code) && now != nil:
			k := reKind.FindStringSubmatch(code)
			now.kind, now.prompt = k[1], k[2]
		case deep && word == "help":
			in = "help"
		case deep && slices.Contains([]string{"depends", "select", "default", "prompt"}, word):
			if now != nil {
				now.refs = append(now.refs, reName.FindAllString(reQuoted.ReplaceAllString(rest, ""), -1)...)
			}
		default:
			bad("not understood: " + code)
		}
	}
	end()
	for _, o := range open {
		m.wrong = append(m.wrong, file+": wants "+o)
	}
	return nil
}
