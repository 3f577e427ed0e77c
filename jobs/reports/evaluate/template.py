"""The template of an evaluation's page (Jinja; rendered by `jobs.reports.page` with everything escaped)."""

PAGE = """\
<body>
<h1>Evaluation report</h1>
<ul>
{% for sentence in report.summary %}
<li>{{ sentence }}</li>
{% endfor %}
</ul>
{% for note in report.notes %}
<p class="soft">{{ note }}</p>
{% endfor %}

<h2>Results</h2>
{{ figure("passk", "pass@k and majority vote against k") }}
<div class="scroll"><table>
<thead><tr>
<th>mean over problems (95 % interval)</th>
{% for label in labels %}
<th>{{ label }}</th>
{% endfor %}
</tr></thead>
<tbody>
{% for name, cells in rows %}
<tr>
<td>{{ name }}</td>
{% for cell in cells %}
<td>{{ cell }}</td>
{% endfor %}
</tr>
{% endfor %}
</tbody></table></div>
<p class="soft">distinct answers: different final answers among all scored responses of a problem. tokens: mean length of a response.
entropy: mean of −log p over sampled tokens, an unbiased estimate of the entropy of the distribution they were sampled from. base log-prob:
how likely the base model finds the responses, per token and (log-likelihood) per response; lower is less mere sharpening of the base
model, or less coherent: of correct responses tells the two apart.</p>

<h2>Verdicts</h2>
<ul>
{% for label in labels %}
<li>{{ label }}: {{ verdicts[loop.index0] }}</li>
{% endfor %}
</ul>
{{ figure("solve_rates", "number of problems by their share of correct responses") }}

{% if report.comparisons %}
<h2>Comparison</h2>
{{ figure("difference", "difference in pass@k against k") }}
{{ figure("efficiency", "sample efficiency against K") }}
{% for comparison in report.comparisons %}
<h3>{{ comparison.model }} against {{ comparison.against }}</h3>
<div class="scroll"><table>
<thead><tr>
<th>k</th><th>difference in pass@k</th><th>difference in maj@k</th>
<th>sample efficiency</th><th>the other way round</th>
</tr></thead>
<tbody>
{% for k in comparison.ks %}
<tr>
<td>{{ k }}</td>
<td>{{ at(comparison.difference, k) | interval(3, sign=true) }}</td>
<td>{{ at(comparison.majority_difference, k) | interval(3, sign=true) }}</td>
<td>{{ at(comparison.efficiency, k) | interval }}</td>
<td>{{ at(comparison.reverse_efficiency, k) | interval }}</td>
</tr>
{% endfor %}
</tbody></table></div>
{% endfor %}
<p class="soft">Sample efficiency at k: k divided by the samples with which the first model reaches the other's pass@k, interpolated between
whole numbers; 0: not with all its samples.</p>
{% endif %}

{% if report.examples %}
<h2>Examples</h2>
<p class="soft">Chosen by rule: the problems that the models differ most on, or of one model those nearest to half right; of each, the
first correct and the first other response.</p>
{% for example in report.examples %}
<details>
<summary>{{ example.problem_id }}
{%- for answers in example.answers %}
; {{ answers.model }}: {{ answers.num_correct }} of {{ answers.num_scored }} right
{%- endfor %}
</summary>
<pre dir="ltr">{{ example.question }}</pre>
<p>Reference answer: {{ example.reference_answer }}</p>
{% for answers in example.answers %}
<div class="pick">
<p><strong>{{ answers.model }}</strong>
{%- if answers.majority is not none %}: most frequent answer {{ answers.majority }}, {{ (100 * answers.majority_share) | number(0) }} % of
responses{% endif %}</p>
{% if answers.correct is not none %}
<p><span class="correct">correct</span></p>
<pre dir="ltr">{{ answers.correct }}</pre>
{% endif %}
{% if answers.other is not none %}
<p>{{ answers.other_status }}</p>
<pre dir="ltr">{{ answers.other }}</pre>
{% endif %}
</div>
{% endfor %}
</details>
{% endfor %}
{% endif %}

<h2>Problems</h2>
<details><summary>{{ report.problems | length }} problems: correct of scored responses
{%- if report.problems | length > shown_problems %} (the first {{ shown_problems }}; all are in report.json){% endif %}</summary>
<div class="scroll"><table>
<thead><tr><th>problem</th>
{% for label in labels %}
<th>{{ label }}</th>
{% endfor %}
</tr></thead>
<tbody>
{% for name, problem in problems %}
<tr><td>{{ name }}</td>
{% for correct in problem.num_correct %}
<td>{{ correct }} / {{ problem.num_scored[loop.index0] }}</td>
{% endfor %}
</tr>
{% endfor %}
</tbody></table></div></details>

<h2>Settings</h2>
<details><summary>{{ report.settings | length }} settings</summary>
<div class="scroll"><table class="settings"><tbody>
{% for key, text in report.settings.items() %}
<tr><td>{{ key }}</td><td>{{ text }}</td></tr>
{% endfor %}
</tbody></table></div></details>
<p class="soft">Intervals: percentile bootstrap over problems, {{ first.num_resamples }} resamples, seed {{ first.seed }}; of a
comparison the same resamples for both models. A model that solves none or all of few problems has an interval of no width; that
is no certainty.</p>
</body>
</html>
"""
