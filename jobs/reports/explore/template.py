"""The template of a pool report's page (Jinja; rendered by `jobs.reports.page` with everything escaped)."""

PAGE = """\
{% set statistics = report.statistics %}
<body>
<h1>Exploration report</h1>
{% if report.warning %}
<p class="warning"><strong>Warning.</strong> {{ report.warning }}</p>
{% endif %}
<ul>
{% for sentence in report.summary %}
<li>{{ sentence }}</li>
{% endfor %}
</ul>
{% for note in report.notes %}
<p class="soft">{{ note }}</p>
{% endfor %}

{% if statistics %}
<h2>Correct answers found with k verifications</h2>
{{ figure("passk", "pass@k of every order against k") }}
<div class="scroll"><table>
<thead><tr>
<th>pass@k</th>
{% for k in statistics.ks %}
<th>k = {{ k }}</th>
{% endfor %}
<th>to first correct</th>
<th>efficiency (95 % interval)</th>
</tr></thead>
<tbody>
{% if statistics.random_pass_at_k %}
<tr>
<td>{{ random | label }}</td>
{% for k in statistics.ks %}
<td>{{ at(statistics.random_pass_at_k, k) | value }}</td>
{% endfor %}
<td>{{ statistics.random_first_correct | value(1) }}</td>
<td>1</td>
</tr>
{% endif %}
{% for name, order in statistics.orders.items() %}
<tr>
<td>{{ name | label }}</td>
{% for k in statistics.ks %}
<td>{{ at(order.pass_at_k, k) | value }}</td>
{% endfor %}
<td>{{ order.first_correct | value(1) }}</td>
<td>{{ order.efficiency | interval }}</td>
</tr>
{% endfor %}
</tbody></table></div>
<p class="soft">To first correct: mean number of verifications until a correct answer, over prompts that have one. Efficiency:
that of random choice divided by that of the order; 2 means half the verifications.</p>

{% for name in featured if name in statistics.orders and statistics.orders[name].difference %}
{% set order = statistics.orders[name] %}
<h3>{{ name | label }} against random choice</h3>
<div class="scroll"><table>
<thead><tr>
<th>k</th><th>random</th><th>{{ name }}</th>
<th>difference</th>
<th>efficiency at k</th>
</tr></thead>
<tbody>
{% for k in statistics.ks %}
<tr>
<td>{{ k }}</td>
<td>{{ at(statistics.random_pass_at_k, k) | interval }}</td>
<td>{{ at(order.pass_at_k, k) | interval }}</td>
<td>{{ at(order.difference, k) | interval(sign=true) }}</td>
<td>{{ at(order.efficiency_at_k, k) | interval }}</td>
</tr>
{% endfor %}
</tbody></table></div>
{% endfor %}
{% endif %}

{% if "first_correct" in images %}
<h2>Verifications to the first correct answer</h2>
{{ figure("first_correct", "verifications to the first correct answer, order against random choice") }}
{% endif %}
{% if "efficiency" in images %}
<h2>Efficiency</h2>
{{ figure("efficiency", "efficiency against k") }}
{% endif %}

<h2>What each order picks first</h2>
<div class="scroll"><table>
<thead><tr>
<th>first {{ first_picks }} picks</th><th>tokens</th><th>cut off</th><th>mean log-prob</th>
<th>different answers</th><th>similarity</th>
</tr></thead>
<tbody>
{% for name, picks in report.picks.items() %}
<tr>
<td>{{ name | label }}</td>
<td>{{ picks.mean_tokens | number(1) }}</td>
<td>{{ (100 * picks.truncated_share) | number(1) }} %</td>
<td>{{ picks.mean_logprob | number }}</td>
<td>{{ picks.different_answers | number }}</td>
<td>{{ picks.similarity | number(sign=true) }}</td>
</tr>
{% endfor %}
</tbody></table></div>
<p class="soft">Means over prompts. Similarity: mean cosine of two picks' features less their pool's mean; lower is more
different. Novelty that is only incoherence shows as picks that are long, cut off and unlikely.</p>

{% if report.examples %}
<h2>Examples: what {{ report.examples[0].order | label }} picks</h2>
<p class="soft">Chosen by rule: of the prompts that have a correct candidate, the {{ examples_of_a_kind }} where this order needs
the smallest share of the verifications that random choice is expected to need (if below 1) and the {{ examples_of_a_kind }} with
the largest (if above 1); where verdicts do not tell, the first {{ examples_of_a_kind }} prompts.</p>
{% for kind in kinds %}
{% for example in report.examples if example.kind == kind %}
{% if loop.first %}
<h3>{{ kinds[kind] }}</h3>
{% endif %}
<details>
<summary>{{ example.problem_id }} of {{ example.task }}
{%- if example.first_correct %}
: first correct at {{ example.first_correct }}, random choice expects {{ example.random_first_correct | number(1) }}
{%- endif %}
</summary>
<pre dir="ltr">{{ example.question }}</pre>
<p>Reference answer: {{ example.reference_answer }}</p>
{% for pick in example.picks %}
<div class="pick">
<p><strong>Pick {{ pick.place }}</strong> (candidate {{ pick.index }}):
<span{% if pick.status == "correct" %} class="correct"{% endif %}>{{ pick.status or "not verified" }}</span>
{%- if pick.answer is not none %}, answer {{ pick.answer }}{% endif -%}
, {{ pick.num_tokens }} tokens
{%- if pick.truncated %}, cut off{% endif -%}
{% if pick.mean_logprob is not none %}, mean log-prob {{ pick.mean_logprob | number }}{% endif %}
</p>
<p class="soft">Why:
{% if pick.score is not none %}
score {{ "%.4g" | format(pick.score) }}{% if pick.place > 1 %}, given the picks before it{% endif +%}
{%- else %}
its place in the order
{%- endif %}
{% if pick.similarity is not none -%}
; of these, pick {{ pick.nearest_place }} is the most similar (cosine {{ pick.similarity | number(sign=true) }})
{%- endif -%}
.</p>
<pre dir="ltr">{{ pick.text }}</pre>
</div>
{% endfor %}
</details>
{% endfor %}
{% endfor %}
{% endif %}

<h2>Settings</h2>
<details><summary>{{ report.settings | length }} settings</summary>
<div class="scroll"><table class="settings"><tbody>
{% for key, text in report.settings.items() %}
<tr><td>{{ key }}</td><td>{{ text }}</td></tr>
{% endfor %}
</tbody></table></div></details>
{% if statistics %}
<p class="soft">Brackets hold 95 % intervals: percentile bootstrap over prompts, {{ statistics.num_resamples }} resamples, seed
{{ statistics.seed }}. An order that solves none of few prompts at some k has an interval of no width there; that is no
certainty.</p>
{% endif %}
</body>
</html>
"""
