package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/tillward/tillward/simulator/emulator"
	"github.com/tillward/tillward/simulator/emulator/paper"
)

type counterCmd struct {
	Listen   string        `help:"Where the printer listens; tills expect port 9100." default:"127.0.0.1:9100"`
	Serial   bool          `help:"Give the printer a serial line too."`
	Receipts string        `help:"Draw what is printed, a PNG for each receipt, into this folder." default:"receipts" placeholder:"DIR"`
	Width    int           `help:"Of the paper, in millimetres: ${enum}." enum:"80,58" default:"80"`
	Pace     time.Duration `help:"How long a line takes to print." placeholder:"DURATION"`
	Counters string        `help:"File that keeps the printer's counters." placeholder:"FILE"`
	Dir      string        `help:"Folder for the card reader's socket; one that is removed at the end by default." placeholder:"DIR"`
}

const counterHelp = `  list            what can be wrong
  set NAME        let it come; the first words of the name do
  clear NAME      let it go
  insert, remove  a card
  roll [LINES]    put in a fresh roll
  sale [LINES]    print a receipt, as a till would
  status          what is wrong, how much paper is left
  quit
`

// Run implements the command.
func (c *counterCmd) Run(ctx context.Context) error { return c.run(ctx, os.Stdin, os.Stdout) }

func (c *counterCmd) run(ctx context.Context, in io.Reader, out io.Writer) (err error) {
	dir := c.Dir
	if dir == "" {
		if dir, err = os.MkdirTemp("", "tillward-counter-"); err != nil {
			return err
		}
		defer os.RemoveAll(dir)
	}
	p, err := emulator.NewPrinter(c.Listen)
	if err != nil {
		return err
	}
	defer func() {
		if end := p.Close(); err == nil {
			err = end
		}
	}()
	if c.Width == 58 {
		p.SetWidth(paper.Narrow)
	}
	p.SetPace(c.Pace)
	if c.Counters != "" {
		if err := p.KeepCounters(c.Counters); err != nil {
			return err
		}
	}
	if err := p.SaveReceipts(c.Receipts); err != nil {
		return err
	}
	r, err := emulator.StartVirtualPCSCD(filepath.Join(dir, "pcscd"), 1)
	if err != nil {
		return err
	}
	defer r.Stop()
	fmt.Fprintf(out, "printer   %s, ESC/POS\n", p.Addr())
	if c.Serial {
		path, err := p.OpenPTY()
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "serial    %s\n", path)
	}
	fmt.Fprintf(out, "receipts  %s\n", c.Receipts)
	fmt.Fprintf(out, "reader    PCSCLITE_CSOCK_NAME=%s\n\n%s\n", r.Reader(0).Socket, counterHelp)

	n := &counter{printer: p, card: r.Reader(0).Card, incidents: append(p.Incidents(), r.Incidents(0)...), receipts: c.Receipts, out: out}
	lines := make(chan string)
	go func() {
		defer close(lines)
		for s := bufio.NewScanner(in); s.Scan(); {
			select {
			case lines <- s.Text():
			case <-ctx.Done():
				return
			}
		}
	}()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			n.tell()
		case line, more := <-lines:
			if line = strings.TrimSpace(line); line == "quit" {
				return nil
			}
			if !more {
				lines = nil // it goes on until it is interrupted
			} else if err := n.obey(line); err != nil {
				fmt.Fprintf(out, "%v\n", err)
			}
			n.tell()
		}
	}
}

// counter is what stands on it, and what was told of it already.
type counter struct {
	printer   *emulator.Printer
	card      *emulator.Card
	incidents []emulator.Incident
	receipts  string
	out       io.Writer

	cuts    uint64
	unknown int
	drawer  bool
}

// tell says what has happened since.
func (c *counter) tell() {
	if cuts := c.printer.Counter(178); cuts != c.cuts {
		fmt.Fprintf(c.out, "%d cut off, pictures in %s; %d lines of paper left\n", cuts-c.cuts, c.receipts, c.printer.Paper())
		c.cuts = cuts
	}
	if list := c.printer.Unknown(); len(list) > c.unknown {
		fmt.Fprintf(c.out, "commands that the printer does not know: %s\n", strings.Join(list[c.unknown:], " "))
		c.unknown = len(list)
	}
	if open := c.printer.Has(emulator.DrawerOpen); open != c.drawer {
		fmt.Fprintf(c.out, "the drawer is %s\n", map[bool]string{true: "open", false: "closed"}[open])
		c.drawer = open
	}
}

func (c *counter) obey(line string) error {
	word, rest, _ := strings.Cut(line, " ")
	number := func(usual int) (int, error) {
		if rest == "" {
			return usual, nil
		}
		n, err := strconv.Atoi(rest)
		if err != nil || n < 1 || n > 100000 {
			return 0, fmt.Errorf("%s %s: a number of lines, please", word, rest)
		}
		return n, nil
	}
	switch word {
	case "":
	case "list":
		for _, i := range c.incidents {
			fmt.Fprintf(c.out, "  %-28s %s tells %s\n", i.Name, i.Peripheral, strings.TrimSuffix(i.On+", then "+i.Off, ", then "))
		}
	case "set", "clear":
		return c.set(rest, word == "set")
	case "insert":
		c.card.Insert()
	case "remove":
		c.card.Remove()
	case "roll":
		n, err := number(0)
		if err != nil {
			return err
		}
		c.printer.LoadRoll(n)
	case "sale":
		n, err := number(30)
		if err != nil {
			return err
		}
		if !c.printer.Receipt(n) {
			return fmt.Errorf("the printer is off-line")
		}
	case "status":
		c.status()
	default:
		fmt.Fprint(c.out, counterHelp)
	}
	return nil
}

func (c *counter) set(name string, on bool) error {
	for _, i := range c.incidents {
		if name != "" && strings.HasPrefix(i.Name, name) {
			return i.Set(on)
		}
	}
	return fmt.Errorf("%q is nothing that can be wrong; see list", name)
}

func (c *counter) status() {
	wrong := false
	for _, f := range []emulator.Fault{
		emulator.CoverOpen, emulator.NearEnd, emulator.PaperEnd, emulator.CutterJam, emulator.HeadHot, emulator.Mechanical, emulator.Unrecoverable,
		emulator.Offline, emulator.FeedButton, emulator.DrawerOpen, emulator.DrawerStuck, emulator.Unplugged,
	} {
		if c.printer.Has(f) {
			fmt.Fprintf(c.out, "  printer: %s\n", f)
			wrong = true
		}
	}
	if !wrong {
		fmt.Fprintln(c.out, "  printer: all well")
	}
	fmt.Fprintf(c.out, "  %d lines of paper left, a card is in: %v\n", c.printer.Paper(), c.card.Inserted())
}
