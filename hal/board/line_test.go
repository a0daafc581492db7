package board_test

import (
	"testing"
	"time"

	"github.com/tillward/tillward/hal/board"
)

// FuzzLostEdges holds that, whatever edges get lost and whenever the line is
// read, every opening is told or counted once it can be known, and no other.
// Each byte is a turn of the line: bit 0 loses its edge, bit 1 lets it wait
// behind a reading, bit 2 reads the line after it.
func FuzzLostEdges(f *testing.F) {
	f.Add(false, []byte{0, 0, 0, 0})
	f.Add(false, []byte{1, 4, 1, 0})
	f.Add(true, []byte{1, 5, 1, 5, 0, 3, 7, 2, 2, 4})
	f.Add(true, []byte{2, 2, 2, 4, 1, 1, 1, 1, 1})
	f.Fuzz(func(t *testing.T, active bool, turns []byte) {
		var line board.Follow
		var waiting []board.Edge
		var seq uint32
		rises, lost, told := 0, uint32(0), uint32(0)
		hear := func() {
			for _, e := range waiting {
				told += line.Edge(e)
			}
			waiting = nil
		}
		line.Level(active)
		for i, turn := range append(turns, 0) { // the last one tells of those before
			active = !active
			if active {
				rises++
			}
			if seq++; turn&1 != 0 && i < len(turns) {
				lost++
			} else {
				waiting = append(waiting, board.Edge{Active: active, Seq: seq})
			}
			if turn&2 == 0 {
				hear()
			}
			if turn&4 != 0 {
				line.Level(active)
			}
		}
		hear()
		if line.Rises != rises || line.Last != active || told != lost {
			t.Errorf("%d openings known, %d were; is %v, should be %v; %d edges missed, %d were lost", line.Rises, rises, line.Last, active, told, lost)
		}
	})
}

// TestTwiceTheSame holds that an edge which says what the one before it said
// hides an opening, as where a chip is slower than the lid.
func TestTwiceTheSame(t *testing.T) {
	var line board.Follow
	line.Level(false)
	line.Edge(board.Edge{Active: true, Seq: 1})
	line.Edge(board.Edge{Active: false, Seq: 2})
	line.Edge(board.Edge{Active: false, Seq: 3})
	if line.Rises != 2 || line.Last {
		t.Errorf("%d openings, open %v; want 2 and closed", line.Rises, line.Last)
	}
	line.Edge(board.Edge{Active: true, Seq: 1}) // numbered anew
	if line.Rises != 3 {
		t.Errorf("after counting anew: %d openings, want 3", line.Rises)
	}
}

// FuzzEdge holds that what the kernel says is an edge or an error.
func FuzzEdge(f *testing.F) {
	edge := make([]byte, 48)
	edge[8], edge[16], edge[20] = 1, 7, 7 // rising, number 7
	f.Add(edge)
	f.Add([]byte{})
	f.Add(make([]byte, 48))
	f.Fuzz(func(t *testing.T, b []byte) {
		before := time.Now()
		e, err := board.DecodeEdge(b)
		if err == nil && (len(b) < 48 || e.At.After(time.Now()) || e.At.After(before.Add(time.Second))) {
			t.Errorf("%x: got %+v", b, e)
		}
	})
}
