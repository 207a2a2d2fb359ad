package analysis_test

import (
	"testing"

	"github.com/composure-mesh/composure/internal/analysis"
)

// The severities are those of https://istio.io/latest/docs/reference/config/analysis/, but for IST0122, which is a Warning there.
func TestSeverities(t *testing.T) {
	for code, want := range map[analysis.Code]analysis.Severity{
		"IST0002": analysis.Warning, "IST0101": analysis.Error, "IST0106": analysis.Error, "IST0109": analysis.Error, "IST0110": analysis.Error, "IST0111": analysis.Error,
		"IST0112": analysis.Error, "IST0116": analysis.Warning, "IST0118": analysis.Info, "IST0122": analysis.Error, "IST0127": analysis.Warning, "IST0128": analysis.Warning,
		"IST0129": analysis.Warning, "IST0130": analysis.Warning, "IST0131": analysis.Info, "IST0132": analysis.Warning, "IST0133": analysis.Warning,
		"IST0134": analysis.Warning, "IST0137": analysis.Warning, "IST0138": analysis.Warning, "IST0140": analysis.Warning, "IST0144": analysis.Warning, "IST0145": analysis.Error, "IST0150": analysis.Warning, "IST0161": analysis.Error,
		"IST0162": analysis.Warning, "IST0173": analysis.Error, "IST0174": analysis.Warning, "CMP0001": analysis.Warning,
	} {
		if got := code.Severity(); got != want {
			t.Errorf("%s is %s, want %s", code, got, want)
		}
	}
}
