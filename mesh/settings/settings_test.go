package settings

import (
	"os"
	"reflect"
	"strings"
	"testing"
)

func TestValues(t *testing.T) {
	for _, tt := range []struct{ name, value, want string }{ // want is empty where it is taken
		{"header-size", "60k", ""},
		{"header-size", "1024", ""},
		{"header-size", "8m", ""},
		{"header-size", "1023", "want a size from 1k to 8m"},
		{"header-size", "9m", "want a size from 1k to 8m"},
		{"header-size", "9000000000m", "want a size"},
		{"header-size", "60K", "want a size"},
		{"header-size", "-1k", "want a size"},
		{"header-size", "", "want a size"},
		{"target-size", "k", "want a size from 64 to 1m"},
		{"header-count", "1", ""},
		{"header-count", "0", "want a number from 1 to 10000"},
		{"header-count", "1e2", "want a number"},
		{"max-streams", "4294967297", "want a number from 1 to 100000"},
		{"max-connections", "2147483647", ""},
		{"max-connections", "2147483648", "want a number"},
		{"drain", "1m30s", ""},
		{"drain", "0s", "want a duration"},
		{"drain", "-5s", "want a duration"},
		{"drain", "10", "want a duration"},
		{"proxy-protocol", "80, 443", ""},
		{"proxy-protocol", "80,", "want ports"},
		{"proxy-protocol", "0", "want ports"},
		{"idle-timeout", "9999h", "want a duration from 1ms to 8760h"},
	} {
		err := Find(tt.name).Check(tt.value)
		switch {
		case tt.want == "" && err != nil:
			t.Errorf("%s=%q: %v", tt.name, tt.value, err)
		case tt.want != "" && (err == nil || !strings.HasPrefix(err.Error(), tt.want)):
			t.Errorf("%s=%q: %v, want %q", tt.name, tt.value, err, tt.want)
		}
	}
}

// Every setting has a field of its own, a default, and its line in the documentation.
func TestEach(t *testing.T) {
	doc, err := os.ReadFile("../../docs/compose.md")
	if err != nil {
		t.Fatal(err)
	}
	p := Default()
	for i := range All {
		s := &All[i]
		if Find(s.Name) != s {
			t.Errorf("%s: listed twice", s.Name)
		}
		def := "`" + s.Default + "`"
		if s.Default == "" {
			def = ""
		}
		if row := "| `composure.proxy." + s.Name + "` | " + s.Text + " | " + def + " | " + s.Source + " |"; !strings.Contains(string(doc), row) {
			t.Errorf("docs/compose.md has no line\n%s", row)
		}
		changed := *p
		for _, v := range []string{"7", "7s", "7k"} {
			if s.Check(v) == nil {
				if err := s.Set(&changed, v); err != nil {
					t.Error(err)
				}
			}
		}
		if n := differences(*p, changed); n != 1 {
			t.Errorf("%s: changes %d fields, want 1", s.Name, n)
		}
	}
	if n := reflect.TypeFor[Proxy]().NumField(); n != len(All) {
		t.Errorf("%d fields and %d settings", n, len(All))
	}
}

func differences(a, b Proxy) (n int) {
	x, y := reflect.ValueOf(a), reflect.ValueOf(b)
	for i := range x.NumField() {
		if !reflect.DeepEqual(x.Field(i).Interface(), y.Field(i).Interface()) {
			n++
		}
	}
	return n
}
