package emulator

import (
	"bytes"
	"cmp"
	"fmt"
	"image/png"
	"os"
	"path/filepath"
	"slices"

	"github.com/tillward/tillward/simulator/emulator/paper"
)

const maxSheets = 64 // that are kept to be looked at

// SetWidth makes it a printer for another paper: paper.Wide or paper.Narrow.
// What it is printing is lost.
func (p *Printer) SetWidth(dots int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.press, p.columns = paper.New(dots), dots/12
}

// Receipts returns what was cut off, newest last; only so many are kept.
func (p *Printer) Receipts() []*paper.Sheet {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.sheets)
}

// SaveReceipts writes a picture of everything that is cut off from now on into
// dir, numbered. Receipt then prints something to look at.
func (p *Printer) SaveReceipts(dir string) error {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return fmt.Errorf("printer emulator: receipts: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.folder = dir
	return nil
}

// Receipt prints so many lines and cuts, as if the till had sent them by its
// own cable. It reports whether the printer could.
func (p *Printer) Receipt(lines int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.offlineLocked() || p.faults[Unplugged] {
		return false
	}
	if p.folder != "" {
		for _, cmd := range ticket(p.counters[178]+1, lines, p.columns) {
			p.press.Do(cmd)
		}
	}
	p.feedLocked(lines * dotsPerLine)
	p.cutLocked(true)
	p.changedLocked()
	return true
}

// endJobLocked is a cut that a till has sent.
func (p *Printer) endJobLocked(partial bool) {
	fed, _ := p.press.Do([]byte{esc, 'J', 0}) // what stands in the line comes out first
	p.feedLocked(fed)
	p.jobs = append(p.jobs, string(p.job))
	p.job = nil
	p.cutLocked(partial)
	p.changedLocked() // the way to the cutter may have been the last of the paper
	if p.faults[ClosesAfterAJob] {
		p.dropLocked()
	}
}

func (p *Printer) cutLocked(partial bool) {
	p.counters[50]++
	p.counters[178]++
	p.keepLocked()
	s := p.press.Cut(partial)
	if s.Empty() {
		return
	}
	if len(p.sheets) == maxSheets {
		p.sheets = p.sheets[1:]
	}
	p.sheets = append(p.sheets, s)
	if p.folder == "" || p.closed {
		return
	}
	p.pictures++
	file := filepath.Join(p.folder, fmt.Sprintf("receipt-%04d.png", p.pictures))
	p.wg.Go(func() {
		if err := writePicture(file, s); err != nil {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.lost = cmp.Or(p.lost, fmt.Errorf("printer emulator: receipt: %w", err))
		}
	})
}

// writePicture leaves no half picture for whoever looks meanwhile.
func writePicture(file string, s *paper.Sheet) error {
	var b bytes.Buffer
	if err := png.Encode(&b, s.Image()); err != nil {
		return err
	}
	whole := file + ".new"
	if err := os.WriteFile(whole, b.Bytes(), 0o600); err != nil {
		return err
	}
	return os.Rename(whole, file)
}

var goods = []string{"Espresso", "Flat white", "Tea, pot of", "Croissant", "Cheese roll", "Apple", "Orange juice", "Sparkling water", "Cake of the day", "Soup, small"}

// Ticket is the job that a till sends for one of its sales: a receipt of just so
// many line feeds, on paper of 80 mm, and a cut. kick opens the drawer first.
func Ticket(number uint64, lines int, kick bool) []byte {
	cmds := ticket(number, lines, paper.Wide/12)
	if kick {
		cmds = slices.Insert(cmds, 1, []byte{esc, 'p', 0, 25, 250})
	}
	return append(bytes.Join(cmds, nil), gs, 'V', 1)
}

// ticket is the same, command by command and without the cut.
func ticket(number uint64, lines, columns int) [][]byte {
	press := paper.New(columns * 12)
	cmds := append([][]byte{{esc, '@'}}, sale(number, lines, columns)...)
	left := lines * dotsPerLine
	for _, cmd := range cmds {
		fed, _ := press.Do(cmd)
		left -= fed
	}
	for ; left > 0; left -= 255 {
		cmds = append(cmds, []byte{esc, 'J', byte(min(left, 255))}) // #nosec G115 -- at most 255
	}
	return cmds
}

// sale is what stands on it, at most so many lines.
func sale(number uint64, lines, columns int) [][]byte {
	var job [][]byte
	say := func(format string, args ...any) {
		for _, c := range []byte(fmt.Sprintf(format, args...)) {
			job = append(job, []byte{c})
		}
		lines--
	}
	set := func(cmd ...byte) { job = append(job, cmd) }
	long := lines >= 14
	if long {
		set(esc, 'a', 1)
		set(esc, 'E', 1)
		set(gs, '!', 0x11)
		say("THE CORNER CAFE\n")
		lines-- // it is higher
		set(gs, '!', 0)
		set(esc, 'E', 0)
		say("1 Counter Street\n\n")
		lines--
		set(esc, 'a', 0)
	}
	say("Receipt %-*dTill 1\n", columns-14, number)
	total := 0
	for i := 0; lines > map[bool]int{true: 8, false: 1}[long]; i++ {
		n := (number*7 + uint64(i)*3) % uint64(len(goods)) // #nosec G115 -- a small count
		cents := 120 + int(n)*35                           // #nosec G115 -- as above
		total += cents
		say("%-*s%5d.%02d\n", columns-8, goods[n], cents/100, cents%100)
	}
	if lines > 0 {
		set(esc, 'E', 1)
		say("%-*s%5d.%02d\n", columns-8, "TOTAL", total/100, total%100)
		set(esc, 'E', 0)
	}
	if long {
		set(esc, 'a', 1)
		say("\nThank you!\n")
		lines--
		set(gs, 'H', 2)
		set(gs, 'w', 2)
		set(gs, 'h', 66) // with its text three lines high
		set(append([]byte{gs, 'k', 73, 10, '{', 'B'}, fmt.Sprintf("%08d", number%1e8)...)...)
	}
	return job
}
